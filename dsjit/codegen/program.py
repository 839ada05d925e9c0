"""A Program: what runs when a compiled function is called.

The steps of a Program are native sequences (kernels and matrix products, run back to back without Python) and
library calls. `codegen.assemble` prints them as one flat Python function, `run(inputs, frame, threads)`; a `Frame`
holds what one run needs for itself: the arena, the tensors in it, and the table of addresses that kernels read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["ArenaTensor", "Frame", "Program"]


@dataclass(frozen=True, slots=True)
class ArenaTensor:
    """A tensor in the arena: `offset` in bytes, sizes and strides in elements."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True)
class Frame:
    """The private memory of one run of a Program.

    arena: bytes. tensors: what library calls read and write there. table: addresses by slot, as a `memoryview` of
    int64 over `buffer`. address: where the table lies.
    """

    arena: torch.Tensor
    tensors: list[torch.Tensor]
    buffer: Any
    table: memoryview
    address: int


@dataclass(slots=True)
class Program:
    """A compiled Graph.

    run: `run(inputs, frame, threads)` returns the output tensors.
    source: the text of `run`, for reading.
    slots: number of entries in the table of addresses; `fixed` gives those that never change within a frame, as
        (slot, byte offset in the arena), and `constants` as (slot, tensor).
    arena_bytes: size of the arena. intermediate_bytes: sum of the buffers that share it.
    """

    run: Callable[[Sequence[torch.Tensor], Frame, int], list[torch.Tensor]]
    source: str
    slots: int
    fixed: tuple[tuple[int, int], ...]
    constants: tuple[tuple[int, torch.Tensor], ...]
    arena_tensors: tuple[ArenaTensor, ...]
    arena_bytes: int
    intermediate_bytes: int
    frames: list[Frame] = field(default_factory=list)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run on tensors of exactly the types that the Graph's inputs have. Reentrant: each run takes a frame."""
        try:
            frame = self.frames.pop()
        except IndexError:
            frame = self._new_frame()
        try:
            return self.run(inputs, frame, torch.get_num_threads())
        finally:
            self.frames.append(frame)

    def _new_frame(self) -> Frame:
        arena = torch.empty(max(self.arena_bytes, 1), dtype=torch.uint8)
        buffer = (ctypes.c_int64 * max(self.slots, 1))()
        base = arena.data_ptr()
        for slot, offset in self.fixed:
            buffer[slot] = base + offset
        for slot, tensor in self.constants:
            buffer[slot] = tensor.data_ptr()
        table = memoryview(buffer).cast("B").cast("q")
        tensors = [_arena_tensor(arena, spec) for spec in self.arena_tensors]
        return Frame(arena, tensors, buffer, table, ctypes.addressof(buffer))


def _arena_tensor(arena: torch.Tensor, spec: ArenaTensor) -> torch.Tensor:
    span = 1 + sum((size - 1) * stride for size, stride in zip(spec.shape, spec.strides, strict=True) if size)
    flat = arena[spec.offset : spec.offset + span * spec.dtype.itemsize].view(spec.dtype)
    return torch.as_strided(flat, spec.shape, spec.strides, flat.storage_offset())
