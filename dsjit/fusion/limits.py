"""The numbers that fusion decides by, in one place."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that keep kernels small and threads busy.

    members: ops in one kernel; bounds the compile time of a kernel.
    buffers: buffers that one kernel reads; beyond that the hardware's prefetchers lose track.
    duplicates: how often an op may be evaluated in one kernel, each time at another index.
    recompute: scalar ops (weighted as `Costs` has it) that may be repeated along a broadcast rather than loaded.
    repeats, repeated_elements: where each is repeated so often, in a kernel of so many points, a division or a root is
        as slow as the memory: one op of weight 1 may be repeated, and what costs more is made once and loaded.
    rows, row_elements: a reduction is not fused with what follows it when it has fewer than `rows` rows of more
        than `row_elements` elements: one thread would do all the work.
    concat: operands of a concatenation that may be evaluated in place, lane by lane, instead of copied.
    """

    members: int = 192
    buffers: int = 40
    duplicates: int = 4
    recompute: int = 4
    repeats: int = 16
    repeated_elements: int = 16384
    rows: int = 16
    row_elements: int = 65536
    concat: int = 4
