"""What a Kernel is once it is compiled for a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from dsjit.codegen.triton.source import KernelSource
from dsjit.codegen.triton.target import TritonTarget

__all__ = ["GpuCode", "Resources"]


@dataclass(frozen=True, slots=True)
class GpuCode:
    """A Kernel compiled for a GPU.

    assembly: PTX, or AMD's. binary: a cubin, or an hsaco. shared: bytes of shared memory of one program.
    threads: of one program. parameters: how many the function has; those after buffers and sizes are Triton's own,
        which a launch leaves 0.
    """

    source: KernelSource
    target: TritonTarget
    name: str
    assembly: str
    binary: bytes
    shared: int
    threads: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one thread: 32-bit registers, and bytes that are spilled from registers to memory (both ways)."""

    registers: int
    spills: int
