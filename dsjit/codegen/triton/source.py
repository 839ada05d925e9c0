"""The text of a Kernel in Triton, and how it is launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dsjit.codegen.triton.schedule import Schedule
from dsjit.ir.kernel import Kernel, Param

__all__ = ["HEADER", "KernelSource"]

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
