"""How the loops of a Kernel are cut into work items and lanes: decided once, from sizes, before any text is printed.

Where a size is a parameter, what is typical of it decides; the decision is right for every value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, Literal, TypeAlias

from dsjit.codegen.llvm.math import MATH
from dsjit.codegen.llvm.target import Target
from dsjit.codegen.nest import drop_unit_axes, has_reductions, is_map, merge_axes, merge_axes_of_map
from dsjit.ir.dtypes import is_floating
from dsjit.ir.kernel import (
    Apply,
    Axis,
    Block,
    Kernel,
    Load,
    Reduce,
    Size,
    SizeParam,
    Stmt,
    Store,
    typical,
)

__all__ = ["Pieces", "Schedule", "Work", "work_cost", "work_items"]

LanesAlong: TypeAlias = Literal["inner", "outer", "none"]

_CHUNK_VECTORS: Final = 64
"""Vectors per work item of a map: some 4 KiB of each float32 operand, a few hundred ns of work."""

_ENOUGH_ITEMS: Final = 8
"""Work items that are shared evenly enough by any number of threads; on few cores, as many as there are cores."""

_MIDDLING_OPS: Final = frozenset({"div", "sqrt", "trunc_div", "floor_div", "trunc_rem", "floor_rem"})
_HEAVY_OPS: Final = frozenset(MATH)


@dataclass(frozen=True, slots=True)
class Pieces:
    """`size` cut into pieces of at most `length`, and how many these are; at most `limit` of them are counted."""

    size: Size
    length: int = 1
    limit: int | None = None

    def count(self, values: Mapping[str, int]) -> int:
        """values: of the sizes that are parameters, by name."""
        size = values[self.size.name] if isinstance(self.size, SizeParam) else self.size
        if self.limit is not None:
            size = min(size, self.limit)
        return -(-size // self.length)


@dataclass(frozen=True, slots=True)
class Work:
    """How much a Kernel has to do, for given values of its sizes.

    items: the axes whose product is the range of work items, outermost first.
    costs: of one work item: ns for each point, and the loops that run over points.
    """

    items: tuple[Pieces, ...]
    costs: tuple[tuple[float, tuple[Pieces, ...]], ...]
    copies: int

    def item_count(self, values: Mapping[str, int]) -> int:
        """Independent pieces of work; 0 when an axis that must be covered is empty."""
        return prod([pieces.count(values) for pieces in self.items])

    def item_cost(self, values: Mapping[str, int]) -> int:
        """A rough estimate of the nanoseconds that one work item takes, at least 1."""
        total = sum(ns * prod([pieces.count(values) for pieces in loops]) for ns, loops in self.costs)
        return max(1, round(total * self.copies))

    def arguments(self, values: Mapping[str, int]) -> tuple[int, ...]:
        """The integers that the function takes after its buffers."""
        return tuple(values.values())


@dataclass(frozen=True, slots=True)
class Schedule:
    """The loop nest that is emitted.

    outer: the axes whose points are work items, outermost first. With lanes along "outer" the last of them is cut
        into groups of `copies` vectors, and a work item is one such group.
    blocks: the Kernel's blocks, their axes merged where memory is contiguous.
    lanes: along which axis lanes run: the last axis of each block ("inner"), the last outer axis ("outer"), or
        nowhere ("none": every value is a scalar).
    chunk: elements of the last block axis that one work item covers; None when it covers them all.
    copies: with lanes along "outer", vectors side by side in one work item.
    """

    outer: tuple[Axis, ...]
    blocks: tuple[Block, ...]
    lanes: LanesAlong
    chunk: int | None = None
    copies: int = 1

    @staticmethod
    def of(kernel: Kernel, target: Target) -> Schedule:
        if kernel.vector_axis is None:
            return Schedule((), kernel.blocks, "none")
        along_outer = any(axis.name == kernel.vector_axis for axis in kernel.outer)
        outer, blocks = drop_unit_axes(kernel.outer, kernel.blocks)
        if along_outer and not any(block.axes for block in blocks) and not has_reductions(blocks):
            # Lanes along the last outer axis of a body without loops: the same as a loop over that axis.
            merged = Block(outer[-1:], tuple(statement for block in blocks for statement in block.body))
            outer, blocks, along_outer = outer[:-1], (merged,), False
        outer, blocks = merge_axes(outer, blocks)
        if along_outer:
            return Schedule(outer, blocks, "outer", copies=_copies_along_outer(outer, blocks, target))
        if not is_map(blocks, frozenset(p.name for p in kernel.params if p.access == "readwrite")):
            return Schedule(outer, blocks, "inner")
        loop = blocks[-1]
        outer, loop = outer + loop.axes[:-1], Block(loop.axes[-1:], loop.body)
        outer, blocks = merge_axes_of_map(outer, (*blocks[:-1], loop))
        chunk, size = _CHUNK_VECTORS * target.lanes, blocks[-1].axes[-1].size
        if not isinstance(size, SizeParam):
            chunk = max(min(chunk, size), 1)
        return Schedule(outer, blocks, "inner", chunk=chunk)

    def work(self, lanes: int) -> Work:
        """How much there is to do, in vectors of `lanes`."""
        items = [Pieces(axis.size) for axis in self.outer]
        if self.lanes == "outer":
            items[-1] = Pieces(self.outer[-1].size, self.copies * lanes)
        if self.chunk is not None:
            items.append(Pieces(self.blocks[-1].axes[-1].size, self.chunk))
        costs: list[tuple[float, tuple[Pieces, ...]]] = []
        for block in self.blocks:
            loops = [Pieces(axis.size) for axis in block.axes]
            if block.axes and self.lanes == "inner":
                loops[-1] = Pieces(block.axes[-1].size, lanes, self.chunk)
            costs.append((sum(_cost(statement) for statement in block.body), tuple(loops)))
        return Work(tuple(items), tuple(costs), self.copies)


def work_items(kernel: Kernel, target: Target) -> int:
    """The number of parallel work items: the function of `kernel` covers any range [begin, end) of them."""
    return Schedule.of(kernel, target).work(target.lanes).item_count(_typical_sizes(kernel))


def work_cost(kernel: Kernel, target: Target) -> int:
    """A rough estimate of the nanoseconds that one work item takes, at least 1."""
    return Schedule.of(kernel, target).work(target.lanes).item_cost(_typical_sizes(kernel))


def _typical_sizes(kernel: Kernel) -> dict[str, int]:
    return {size.name: size.typical for size in kernel.sizes}


def _cost(statement: Stmt) -> float:
    """ns per vector: memory at some 20 GB/s, 3 ns (about ten instructions) for a polynomial."""
    if isinstance(statement, Load) and statement.gathered:
        return 4.0
    if isinstance(statement, Load | Store):
        return 2.0
    if isinstance(statement, Apply):
        return 5.0 if statement.op in _HEAVY_OPS else 2.0 if statement.op in _MIDDLING_OPS else 0.3
    return 0.3


def body_weight(body: Sequence[Stmt]) -> int:
    """Instructions of one vector iteration, roughly."""
    weight = 0
    for statement in body:
        if isinstance(statement, Apply):
            weight += 20 if statement.op in _HEAVY_OPS else 3 if statement.op in _MIDDLING_OPS else 1
        else:
            weight += 1
    return weight


def _copies_along_outer(outer: Sequence[Axis], blocks: Sequence[Block], target: Target) -> int:
    """Vectors side by side in a work item. Many make for long runs of memory, which the prefetchers see, and for
    independent chains of additions; fewer are taken when registers would run out, or work items for the threads."""
    vectors = -(-typical(outer[-1].size) // target.lanes)
    items = vectors
    for axis in outer[:-1]:
        items *= typical(axis.size)
    copies = 1
    while 2 * copies <= vectors and items // (2 * copies) >= min(target.cores, _ENOUGH_ITEMS):
        copies *= 2
    held = max((_registers_held(block.body) for block in blocks), default=1)
    while copies > 1 and copies * held > target.vector_registers // 2:
        copies //= 2
    return copies


def _registers_held(body: Sequence[Stmt]) -> int:
    """Accumulators of one vector, and a share of what is computed on the way to them."""
    accumulators = sum(2 if s.index is not None else 1 for s in body if isinstance(s, Reduce))
    return max(1, accumulators + body_weight(body) // 8)


def sums_floats(statement: Stmt) -> bool:
    """Whether the statement is a reduction whose rounding error depends on the order of additions."""
    return isinstance(statement, Reduce) and statement.kind == "sum" and is_floating(statement.dtype)
