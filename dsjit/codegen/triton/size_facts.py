"""What a kernel's sizes decide when they are known: how many programs there are, and what code may rely on.

Each kernel gets one Python function of its sizes, printed and compiled once: a program for many sizes asks it for every
shape that it meets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from dsjit.codegen.nest import statement_index
from dsjit.codegen.triton.schedule import INT32, Schedule, Tile
from dsjit.codegen.triton.source import KernelSource
from dsjit.ir.kernel import Index, Size, SizeParam

__all__ = ["SizeFacts", "size_facts"]

SizeFacts: TypeAlias = tuple[int, tuple[bool, ...], bool]
"""The number of programs, which sizes are multiples of 16, and whether the source for narrow indices will do."""

_MULTIPLE: Final = 16
"""Of a size, where accesses of 16 bytes need it: what Triton knows integers by."""


def size_facts(source: KernelSource, narrow: KernelSource | None) -> Callable[..., SizeFacts]:
    """From the values of the kernel's sizes, in its order. narrow: the same kernel with indices of 32 bits."""
    names = {size.name: f"n{number}" for number, size in enumerate(source.kernel.sizes)}
    parameters = ", ".join(names.values())
    counts = [f"-(-({_tile_size(tile, names)}) // {tile.block})" for tile in source.schedule.programs]
    divisible = "".join([f"{name} % {_MULTIPLE} == 0, " for name in names.values()])
    fits = "False" if narrow is None else _fits(narrow.schedule, names)
    text = f"lambda {parameters}: ({' * '.join(counts) or '1'}, ({divisible}), {fits})"
    found: Callable[..., SizeFacts] = eval(text, {"__builtins__": {"abs": abs}})
    return found


def _tile_size(tile: Tile, names: Mapping[str, str]) -> str:
    return " * ".join([_text(axis.size, names) for axis in tile.axes]) or "1"


def _text(size: Size, names: Mapping[str, str]) -> str:
    return names[size.name] if isinstance(size, SizeParam) else str(size)


def _fits(schedule: Schedule, names: Mapping[str, str]) -> str:
    """A bound of every number that is computed with indices, as `needs_wide_index` has it, against 32 bits."""
    bounds: dict[str, Any] = {f"{_tile_size(tile, names)} + {tile.block}": None for tile in schedule.tiles}
    bounds |= {f"abs({name})": None for name in names.values()}
    for block in schedule.blocks:
        extents = {axis.name: axis.size for tile in schedule.programs for axis in tile.axes}
        extents |= {axis.name: axis.size for axis in block.axes}
        for statement in block.body:
            index = statement_index(statement)
            if index is not None:
                bounds[_reach(index, extents, names)] = None
    return " and ".join([f"{bound} <= {INT32}" for bound in bounds])


def _reach(index: Index, extents: Mapping[str, Size], names: Mapping[str, str]) -> str:
    terms = [f"abs({_text(times, names)}) * {_text(extents[axis], names)}" for axis, times in index.terms]
    return " + ".join([f"abs({_text(index.offset, names)})", *terms])
