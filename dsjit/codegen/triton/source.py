"""The text of a Kernel in Triton, and how it is launched."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from typing import Final

from dsjit.codegen.triton.schedule import Schedule
from dsjit.codegen.triton.spellings import HELPERS
from dsjit.ir.graph import UNKNOWN_SOURCE, Source
from dsjit.ir.kernel import Apply, Check, Kernel, Param, Reduce, Stmt

__all__ = ["HEADER", "KernelSource", "identifier", "origin_comments", "source_of"]

HEADER: Final = """\
import triton
import triton.language as tl
from triton.language.extra import libdevice
"""
"""What the text of a KernelSource needs above it, to be a module."""


@dataclass(frozen=True, slots=True)
class KernelSource:
    """A Kernel in Triton.

    name: of the function. text: helper functions, and the function: (buffers, sizes, tile constants).
    params, sizes: names of the buffers and of the integers, in the Kernel's order. constants: the tile constants.
    warps: in each program.
    """

    name: str
    text: str
    kernel: Kernel
    params: tuple[Param, ...]
    sizes: tuple[str, ...]
    constants: tuple[tuple[str, int], ...]
    schedule: Schedule

    @property
    def warps(self) -> int:
        return self.schedule.warps

    @property
    def module(self) -> str:
        """Text that can be imported."""
        return f"{HEADER}\n\n{self.text}"


def origin_comments(kernel: Kernel) -> list[str]:
    """Lines that say which of the user's the kernel computes, to stand first in the function."""
    sources: dict[str, dict[int, None]] = {}
    for block in kernel.blocks:
        for statement in block.body:
            source = source_of(statement)
            if source is not None:
                sources.setdefault(source.file, {})[source.line] = None
    return [
        f"    # {file}, line{'s' if len(lines) > 1 else ''} {', '.join(map(str, sorted(lines)))}"
        for file, lines in sources.items()
    ]


def source_of(statement: Stmt) -> Source | None:
    """The user's line, where it is known."""
    source = statement.source if isinstance(statement, Apply | Reduce | Check) else None
    return None if source == UNKNOWN_SOURCE else source


def identifier(name: str) -> str:
    """A name for a function, of any text."""
    text = re.sub(r"\W", "_", name)
    return f"k_{text}" if text[:1].isdigit() or keyword.iskeyword(text) or text in HELPERS else text
