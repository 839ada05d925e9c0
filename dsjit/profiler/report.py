"""Reports: one HTML file that needs nothing else.

The page is `html/template.html`, with the style, the scripts and the chart library (`html/vendor`) in it. The data is
JSON in a script element of a type that browsers do not run, in which no `<` is left; the scripts put what comes from it
into the page as text. So a name or a line of source can hold anything.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

from jinja2 import BaseLoader, Environment

__all__ = ["notebook_html", "report_html"]

_STEP_TEXTS: Final = ("kernel", "llvm", "triton", "graph")
_PROGRAM_TEXTS: Final = ("source", "captured", "optimized")


def report_html(*profiles: Mapping[str, Any], title: str = "", comparison: Mapping[str, Any] | None = None) -> str:
    """The page for one profile, or for several and their comparison. profiles: as `ProfileData.to_dict` makes them."""
    texts: dict[str, int] = {}
    data = {
        "profiles": [_pooled(profile, texts) for profile in profiles],
        "comparison": comparison,
        "texts": list(texts),
    }
    page: str = _template().render(
        title=title or profiles[0]["title"],
        style=_read("style.css"),
        library_style=_read("vendor/uplot/uPlot.min.css"),
        library=_read("vendor/uplot/uPlot.iife.min.js"),
        script=_script(),
        data=embedded_json(data),
    )
    return page


def notebook_html(profile: Mapping[str, Any]) -> str:
    """The page in a frame, as notebooks show it: its scripts and styles touch nothing else."""
    page = base64.b64encode(report_html(profile).encode()).decode()
    return (
        f'<iframe title="dsjit profile" style="width:100%;height:720px;border:0" sandbox="allow-scripts" '
        f'src="data:text/html;base64,{page}"></iframe>'
    )


def embedded_json(data: Any) -> str:
    """JSON that is safe inside a script element: what could end the element, or open a comment, is escaped."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _pooled(profile: Mapping[str, Any], texts: dict[str, int]) -> dict[str, Any]:
    """With each long text once, in `texts`: its number, or -1 for none."""

    def replaced(entries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {**entry, **{name: texts.setdefault(entry[name], len(texts)) if entry[name] else -1 for name in names}}
            for entry in entries
        ]

    return {
        **profile,
        "steps": replaced(profile["steps"], _STEP_TEXTS),
        "programs": replaced(profile["programs"], _PROGRAM_TEXTS),
    }


@cache
def _template() -> Any:
    return Environment(loader=BaseLoader(), autoescape=True).from_string(_read("template.html"))


@cache
def _read(name: str) -> str:
    return files("dsjit.profiler").joinpath("html", *name.split("/")).read_text(encoding="utf-8")


@cache
def _script() -> str:
    folder = files("dsjit.profiler").joinpath("html", "scripts")
    names = sorted(each.name for each in folder.iterdir() if each.name.endswith(".js"))
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)
