"""The pages of docs/: their fenced blocks, and the stages that pipeline.md prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dsjit

DOCS = Path(__file__).parents[2] / "docs"
FENCED = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: "```language name". start, end: of its text in the page. line: the number of its first line."""

    language: str
    name: str
    text: str
    start: int
    end: int
    line: int


def blocks(page: str) -> Iterator[Block]:
    for found in FENCED.finditer(page):
        line = page.count("\n", 0, found.start(3)) + 1
        yield Block(found[1], found[2] or "", found[3], found.start(3), found.end(3), line)


def run_python(name: str) -> dict[str, Any]:
    """Runs the Python blocks of a page, in order, in one namespace; their lines have the numbers of the page."""
    namespace: dict[str, Any] = {"__name__": f"docs_{name.removesuffix('.md')}"}
    for block in blocks((DOCS / name).read_text(encoding="utf-8")):
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, f"docs/{name}", "exec"), namespace)
    return namespace


def stages(namespace: dict[str, Any]) -> dict[str, str]:
    """The stages that pipeline.md shows, by the name of the block: of the function `scaled_softmax` on `x` and `y`."""
    report = dsjit.explain(namespace["scaled_softmax"])(namespace["x"], namespace["y"])
    (kernel,) = report.kernels
    function, arguments = namespace["scaled_softmax"].target, (namespace["x"], namespace["y"])
    (gpu_kernel,) = dsjit.compile_for(function, arguments, target="cuda:sm_90").kernels
    plan = "\n".join(f"{op}  {source}" for op, source in zip(kernel.ops, kernel.sources, strict=True))
    return {
        "captured": _function(report.captured),
        "optimized": _function(report.optimized),
        "plan": f"{kernel.name}\n" + plan + "\n" + "".join(f"not fused: {reason}\n" for reason in report.reasons),
        "kernel": kernel.text.strip() + "\n",
        "triton": gpu_kernel.source.text,
        "program": report.program.strip() + "\n",
    }


def _function(text: str) -> str:
    """A printed Graph without the imports above it, which are those of every Graph."""
    return text[text.index("def ") :].strip() + "\n"


def regenerated(page: str, texts: dict[str, str]) -> str:
    """`page` with the text of each named block put in anew."""
    for block in reversed(list(blocks(page))):
        if block.name in texts:
            page = page[: block.start] + texts[block.name] + page[block.end :]
    return page
