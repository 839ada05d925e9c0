"""Rewriting the loop nest of a Kernel without changing what it means: what emitters do before they cut it up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from dsjit.ir.kernel import (
    Axis,
    Block,
    Index,
    IndexValue,
    InRange,
    Kernel,
    Load,
    Reduce,
    SizeParam,
    Stmt,
    Store,
    known,
)

__all__ = [
    "drop_unit_axes",
    "has_gathers",
    "has_reductions",
    "index_bounds",
    "is_map",
    "map_indices",
    "merge_axes",
    "merge_axes_of_map",
    "statement_index",
]


def has_reductions(blocks: Sequence[Block]) -> bool:
    return any(isinstance(statement, Reduce) for block in blocks for statement in block.body)


def has_gathers(statements: Iterable[Stmt]) -> bool:
    """Whether data decide which elements are read."""
    return any(isinstance(statement, Load) and statement.gathered for statement in statements)


def is_map(blocks: Sequence[Block], updated: frozenset[str]) -> bool:
    """One loop, at the end, and nothing before it that would do something else when it runs once per chunk: no stores,
    no loads of the params that the loop updates."""
    if not blocks or not blocks[-1].axes or has_reductions(blocks):
        return False
    return not any(
        block.axes or any(isinstance(s, Store) or (isinstance(s, Load) and s.param in updated) for s in block.body)
        for block in blocks[:-1]
    )


def statement_index(statement: Stmt) -> Index | None:
    if isinstance(statement, Load | Store | IndexValue | InRange | Reduce):
        return statement.index
    return None


def _indices(blocks: Sequence[Block]) -> Iterator[Index]:
    for block in blocks:
        for statement in block.body:
            index = statement_index(statement)
            if index is not None:
                yield index


def map_indices(block: Block, function: Callable[[Index], Index]) -> Block:
    body: list[Stmt] = []
    for statement in block.body:
        index = statement_index(statement)
        if index is not None:
            new = function(index)
            if new is not index:
                statement = replace(statement, index=new)  # type: ignore[arg-type]
        body.append(statement)
    return Block(block.axes, tuple(body))


def drop_unit_axes(outer: tuple[Axis, ...], blocks: tuple[Block, ...]) -> tuple[tuple[Axis, ...], tuple[Block, ...]]:
    """Without the axes of size 1, whose value is always 0; a nest that has no others keeps one of them."""
    nests = (outer, *(block.axes for block in blocks))
    if not any(axis.size == 1 for axes in nests if len(axes) > 1 for axis in axes):
        return outer, blocks
    outer, gone = _without_unit(outer)
    dropped: list[Block] = []
    for block in blocks:
        axes, gone_here = _without_unit(block.axes)
        names = gone | gone_here

        def forget(index: Index, names: frozenset[str] = names) -> Index:
            if not any(name in names for name, _ in index.terms):
                return index
            return Index(index.offset, tuple(term for term in index.terms if term[0] not in names))

        dropped.append(map_indices(Block(axes, block.body), forget))
    return outer, tuple(dropped)


def _without_unit(axes: tuple[Axis, ...]) -> tuple[tuple[Axis, ...], frozenset[str]]:
    kept = tuple(axis for axis in axes if axis.size != 1) or axes[-1:]
    return kept, frozenset(axis.name for axis in axes) - {axis.name for axis in kept}


def merge_axes(outer: tuple[Axis, ...], blocks: tuple[Block, ...]) -> tuple[tuple[Axis, ...], tuple[Block, ...]]:
    """Neighbouring axes that every index steps through as through one are made one: (4096, 1024) becomes 4194304."""
    outer, blocks = _merge_within(outer, blocks)
    merged: list[Block] = []
    for block in blocks:
        axes, (changed,) = _merge_within(block.axes, (block,))
        merged.append(Block(axes, changed.body))
    return outer, tuple(merged)


def merge_axes_of_map(outer: tuple[Axis, ...], blocks: tuple[Block, ...]) -> tuple[tuple[Axis, ...], tuple[Block, ...]]:
    """As `merge_axes`, and the innermost outer axes into the loop, as a map runs in any order."""
    axes, blocks = _merge_within(outer + blocks[-1].axes, blocks)
    return axes[:-1], (*blocks[:-1], Block(axes[-1:], blocks[-1].body))


def _merge_within(axes: tuple[Axis, ...], blocks: tuple[Block, ...]) -> tuple[tuple[Axis, ...], tuple[Block, ...]]:
    position = len(axes) - 1
    while position > 0:
        upper, lower = axes[position - 1], axes[position]
        extent = _merged_extent(upper, lower, blocks)
        if extent is not None:

            def forget(index: Index, name: str = upper.name) -> Index:
                if not index.coefficient(name):
                    return index
                return Index(index.offset, tuple(term for term in index.terms if term[0] != name))

            blocks = tuple(map_indices(block, forget) for block in blocks)
            axes = (*axes[: position - 1], Axis(lower.name, extent), *axes[position + 1 :])
        position -= 1
    return axes, blocks


def _merged_extent(upper: Axis, lower: Axis, blocks: Sequence[Block]) -> int | None:
    """The size of one axis in place of both; None when they are no such pair. Known sizes only: lowering has merged
    what it could."""
    if isinstance(upper.size, SizeParam) or isinstance(lower.size, SizeParam) or lower.size <= 0:
        return None
    for index in _indices(blocks):
        slow, fast = index.coefficient(upper.name), index.coefficient(lower.name)
        if isinstance(slow, SizeParam) or isinstance(fast, SizeParam) or slow != fast * lower.size:
            return None
    return upper.size * lower.size


def index_bounds(kernel: Kernel) -> list[tuple[int, int]]:
    """The least and the greatest index at which each param may be touched, masks and what is gathered disregarded. Its
    sizes are known."""
    bounds = {param.name: (0, 0) for param in kernel.params}
    for block in kernel.blocks:
        sizes = {axis.name: known(axis.size) for axis in (*kernel.outer, *block.axes)}
        for statement in block.body:
            if not isinstance(statement, Load | Store):
                continue
            index = statement.index
            reach = [known(step) * (sizes[axis] - 1) for axis, step in index.terms]
            low, high = bounds[statement.param]
            least = known(index.offset) + sum(min(0, each) for each in reach)
            most = known(index.offset) + sum(max(0, each) for each in reach)
            bounds[statement.param] = min(low, least), max(high, most)
    return [bounds[param.name] for param in kernel.params]
