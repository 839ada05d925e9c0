"""Two profiles side by side: what a call costs in each, by part, line, module and fused op."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dsjit.errors import ProfileError
from dsjit.profiler.profile import SCHEMA
from dsjit.profiler.report import report_html
from dsjit.profiler.units import percent_text, time_text

__all__ = ["Comparison", "Difference", "compare_profiles"]

SHOWN: Final = 10
WORDS: Final = 6
WORTH: Final = 0.02
"""Of a call: smaller differences are not told in words."""


class _HasDict(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Difference:
    """What something costs for one call, in ns: 0 where it is not there."""

    name: str
    before_ns: float
    after_ns: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """before, after: the profiles, as dictionaries. The rest: ns a call; largest differences first.

    A call is one of the jitted object that was called most in the profile; without calls, it is the profile.
    """

    before: Mapping[str, Any]
    after: Mapping[str, Any]
    call: Difference
    parts: tuple[Difference, ...]
    lines: tuple[Difference, ...]
    modules: tuple[Difference, ...]
    steps: tuple[Difference, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The comparison in sentences."""
        old, new = self.call.before_ns, self.call.after_ns
        a, b = self.before["title"], self.after["title"]
        told = [f"A call of {b} takes {time_text(new)}, one of {a} {time_text(old)}: {_times(old, new)}."]
        changed = [each for each in (*self.parts, *self.lines) if abs(each.after_ns - each.before_ns) > WORTH * old]
        for each in changed[:WORDS]:
            more = "more" if each.after_ns > each.before_ns else "less"
            told.append(f"{each.name}: {time_text(abs(each.after_ns - each.before_ns))} {more} a call.")
        return tuple(told)

    def to_dict(self) -> dict[str, Any]:
        """The differences, without the profiles."""
        return {
            "before": {"title": self.before["title"], "call_ns": self.call.before_ns},
            "after": {"title": self.after["title"], "call_ns": self.call.after_ns},
            "words": list(self.words),
            **{name: [asdict(each) for each in getattr(self, name)] for name in ("parts", "lines", "modules", "steps")},
        }

    def save_html(self, path: str | Path) -> None:
        """Write the report of both, with the comparison."""
        title = f"{self.before['title']} → {self.after['title']}"
        page = report_html(self.before, self.after, title=title, comparison=self.to_dict())
        Path(path).write_text(page, encoding="utf-8")

    def print(self, console: Console) -> None:
        """Print to a rich Console."""
        for line in self.words[:1]:
            console.print(escape(line), highlight=False)
        for title, rows in (("parts", self.parts), ("lines", self.lines), ("fused ops", self.steps)):
            table = Table(title=title, title_justify="left")
            table.add_column("")
            for heading in ("before", "after", "difference"):
                table.add_column(heading, justify="right")
            for row in rows[:SHOWN]:
                sign = "+" if row.after_ns > row.before_ns else "-"
                difference = sign + time_text(abs(row.after_ns - row.before_ns))
                table.add_row(escape(row.name), time_text(row.before_ns), time_text(row.after_ns), difference)
            console.print(table)

    def __str__(self) -> str:
        stream = io.StringIO()
        self.print(Console(file=stream, width=120, force_terminal=False))
        return stream.getvalue()


def compare_profiles(
    before: _HasDict | Mapping[str, Any] | str | Path, after: _HasDict | Mapping[str, Any] | str | Path
) -> Comparison:
    """Compare two profiles: each a `Profile`, its dictionary, or the path of the JSON that it saved.

    Lines are the same when their file, number and text are; lines that have moved are told as gone and as new.
    To compare with eager, profile under `dsjit.set_stance("eager")`.
    Raises ProfileError for what is no profile.
    """
    a, b = _loaded(before), _loaded(after)
    calls = _calls(a), _calls(b)

    def differences(rows: Callable[[Mapping[str, Any]], Iterable[tuple[str, float]]]) -> tuple[Difference, ...]:
        return _differences([(name, ns / calls[0]) for name, ns in rows(a)], [(n, ns / calls[1]) for n, ns in rows(b)])

    parts = differences(lambda data: ((part["name"], part["ns"]) for part in data["parts"]))
    whole = Difference("call", sum(part.before_ns for part in parts), sum(part.after_ns for part in parts))
    return Comparison(
        a,
        b,
        whole,
        parts,
        differences(lambda data: ((_line(line), line["ns"]) for line in data["lines"])),
        differences(lambda data: ((scope["path"] or "(no module)", scope["ns"]) for scope in data["scopes"])),
        differences(lambda data: ((_step(step), step["total_ns"]) for step in data["steps"])),
    )


def _loaded(profile: _HasDict | Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    data: Any
    if isinstance(profile, str | Path):
        try:
            data = json.loads(Path(profile).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ProfileError(f"{profile} is no JSON: {error}") from error
    else:
        data = profile if isinstance(profile, Mapping) else profile.to_dict()
    if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
        raise ProfileError(f"this is no profile of the schema {SCHEMA}: pass a Profile, or a file of save_json")
    return data


def _calls(data: Mapping[str, Any]) -> int:
    counts: dict[str, int] = {}
    for call in data["calls"]:
        counts[call["name"]] = counts.get(call["name"], 0) + call["count"]
    return max(counts.values(), default=1)


def _differences(before: Sequence[tuple[str, float]], after: Sequence[tuple[str, float]]) -> tuple[Difference, ...]:
    found: dict[str, list[float]] = {}
    for side, rows in enumerate((before, after)):
        for name, ns in rows:
            found.setdefault(name, [0.0, 0.0])[side] += ns
    differences = [Difference(name, *costs) for name, costs in found.items() if any(costs)]
    return tuple(sorted(differences, key=lambda row: -abs(row.after_ns - row.before_ns)))


def _line(line: Mapping[str, Any]) -> str:
    return f"{os.path.basename(line['file'])}:{line['line']} {line['text'].strip()}"


def _step(step: Mapping[str, Any]) -> str:
    main = max(step["ops"], key=lambda op: op["share"], default=None)
    place = f"{os.path.basename(main['file'])}:{main['line']}" if main is not None and main["line"] else ""
    return f"{step['name']} {place}".strip()


def _times(old: float, new: float) -> str:
    if not old or not new:
        return "one of them has no calls"
    if abs(new / old - 1) < 0.02:
        return "the same"
    return f"{old / new:.2f} times as fast" if new < old else f"{percent_text(new / old - 1)} more"
