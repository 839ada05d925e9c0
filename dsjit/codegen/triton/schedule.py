"""How the loops of a Kernel are cut into Triton programs and tiles: decided once, from sizes, before text is printed.

Every Kernel has one of two forms.

- A map: all axes are parallel. They are one flat range, cut into tiles; or two, when an operand is contiguous along
  another axis than the rest (a transposed read): with tiles in two dimensions both are read and written in whole lines.
- Rows: outer points by reduced elements. A row that fits is held in registers from block to block ("persistent");
  longer ones, and those whose length is a parameter, are looped over in tiles, once for each block.

Where a size is a parameter, what is typical of it decides; the decision is right for every value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from dsjit.codegen.nest import drop_unit_axes, is_map, merge_axes, merge_axes_of_map, statement_index
from dsjit.codegen.triton.spellings import LIBDEVICE
from dsjit.ir.kernel import (
    Apply,
    Axis,
    Block,
    Cast,
    Index,
    Kernel,
    Load,
    Param,
    Reduce,
    SizeParam,
    Stmt,
    Store,
    typical,
)

__all__ = ["INT32", "Schedule", "Tile", "needs_wide_index"]

_TILE: Final = 1024
"""Elements of a tile of a map: 8 for each of 128 threads, two 16-byte accesses of float32."""

_SQUARE: Final = 32
"""Both sides of a two-dimensional tile: a line of 128 bytes of float32 each way."""

_PERSISTENT: Final = 4096
"""Elements of the longest row that is held in registers; where bodies are short, twice as long, as 16 warps of 16
elements a thread leave room for other programs on the processor. A longer row is read again for each block."""

_ROWS_TILE: Final = 2048
"""Elements of a tile of rows."""

_HEAVY: Final = 24
"""Values alive in one body beyond which a tile gets half as many elements for each thread."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A flat range over `axes` (the last one fastest), cut into blocks of `block` elements, a power of 2.

    name: of the variable that runs over it. looped: whether one program covers it in a loop.
    shares: the name of another tile of the same size, whose constant it uses; its own when empty.
    """

    name: str
    axes: tuple[Axis, ...]
    block: int
    looped: bool = False
    shares: str = ""

    @property
    def constant(self) -> str:
        """What the source calls `block`."""
        return f"{(self.shares or self.name).upper()}BLOCK"

    @property
    def known_size(self) -> int | None:
        """The number of elements, when no size is a parameter."""
        sizes = [axis.size for axis in self.axes]
        return prod([size for size in sizes if not isinstance(size, SizeParam)]) if _all_known(sizes) else None

    def size(self, values: Mapping[str, int]) -> int:
        """The number of elements, for these values of the sizes that are parameters."""
        return prod([values[a.size.name] if isinstance(a.size, SizeParam) else a.size for a in self.axes])

    @property
    def is_exact(self) -> bool:
        """Whether blocks cover the range without going beyond its end."""
        return self.known_size is not None and self.known_size > 0 and self.known_size % self.block == 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """programs: the tiles that are cut over programs, slowest first; one program covers one block of each.

    blocks: the Kernel's, their axes merged. rows: of each of these blocks, the tile over its axes; None when it has
    none. A tile that several blocks share is one object.
    stages: of the pipeline of loads in a loop; None for what Triton has by default.
    """

    programs: tuple[Tile, ...]
    blocks: tuple[Block, ...]
    rows: tuple[Tile | None, ...]
    warps: int
    stages: int | None = None

    @staticmethod
    def of(kernel: Kernel, processors: int) -> Schedule:
        outer, blocks = drop_unit_axes(kernel.outer, kernel.blocks)
        outer, blocks = merge_axes(outer, blocks)
        if not any(block.axes for block in blocks):
            return _map(kernel, outer, blocks, processors)
        if is_map(blocks, frozenset(p.name for p in kernel.params if p.access == "readwrite")):
            last = Block(blocks[-1].axes[-1:], blocks[-1].body)
            outer, blocks = merge_axes_of_map(outer + blocks[-1].axes[:-1], (*blocks[:-1], last))
            return _map(kernel, outer + blocks[-1].axes, blocks, processors)
        return _rows(kernel, outer, blocks, processors)

    def program_count(self, values: Mapping[str, int]) -> int:
        """How many programs to launch, for these values of the sizes that are parameters."""
        return prod([-(-tile.size(values) // tile.block) for tile in self.programs])

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys([*self.programs, *[tile for tile in self.rows if tile is not None]]))


def _map(kernel: Kernel, axes: tuple[Axis, ...], blocks: tuple[Block, ...], processors: int) -> Schedule:
    merged = (Block((), tuple([statement for block in blocks for statement in block.body])),)
    cut = _transposed_cut(axes, merged)
    if cut is not None:
        sides = [min(_SQUARE, _power_of_2(_typical(half))) for half in (axes[:cut], axes[cut:])]
        tiles = (Tile("y", axes[:cut], sides[0]), Tile("x", axes[cut:], sides[1]))
        return Schedule(tiles, merged, (None,), _warps(prod(sides), merged))
    elements = _typical(axes)
    block = min(_TILE // (2 if _weight(merged) > _HEAVY else 1), _power_of_2(elements))
    while block > 128 and elements < 2 * processors * block:
        block //= 2
    return Schedule((Tile("x", axes, block),), merged, (None,), _warps(block, merged))


def _transposed_cut(axes: Sequence[Axis], blocks: Sequence[Block]) -> int | None:
    """Where to cut the axes in two, when memory is contiguous along another axis than the last in some access, and
    strided along the last: after the other axis."""
    votes: dict[int, int] = {}
    for statement in blocks[0].body:
        if not isinstance(statement, Load | Store) or not axes:
            continue
        along_last = statement.index.coefficient(axes[-1].name)
        if isinstance(along_last, SizeParam) or abs(along_last) <= 1:
            continue
        for number, axis in enumerate(axes[:-1]):
            if statement.index.coefficient(axis.name) in (1, -1):
                votes[number] = votes.get(number, 0) + 1
    votes = {n: count for n, count in votes.items() if typical(axes[n].size) >= 8 and _typical(axes[n + 1 :]) >= 8}
    return max(votes, key=lambda number: (votes[number], number)) + 1 if votes else None


def _rows(kernel: Kernel, outer: tuple[Axis, ...], blocks: tuple[Block, ...], processors: int) -> Schedule:
    weight = _weight(blocks)
    budget = _ROWS_TILE // (2 if weight > _HEAVY else 1)
    along_outer = any(axis.name == kernel.vector_axis for axis in kernel.outer)
    rows = _typical(outer)
    longest = max([_typical(block.axes) for block in blocks if block.axes])
    if along_outer:
        # Neighbouring rows are neighbours in memory: a line of them.
        across = min(_SQUARE, _power_of_2(rows))
    else:
        across = max(1, min(_power_of_2(rows), budget // _power_of_2(longest)))
        while across > 1 and rows < 2 * processors * across:
            across //= 2
    persistent = _persistent_limit(kernel.params, weight, across)
    tiles: dict[tuple[Axis, ...], Tile] = {}
    found: list[Tile | None] = []
    for block in blocks:
        if not block.axes:
            found.append(None)
            continue
        # Blocks over the same extents share a tile, whatever their axes are called.
        key = tuple([Axis(str(number), axis.size) for number, axis in enumerate(block.axes)])
        if key not in tiles:
            length = _power_of_2(_typical(block.axes))
            fits = _all_known([axis.size for axis in block.axes]) and length * across <= persistent
            name = "r" if not tiles else f"r{len(tiles)}"
            tiles[key] = Tile(name, block.axes, length if fits else min(length, max(1, budget // across)), not fits)
        found.append(tiles[key])
    elements = across * max(tile.block for tile in tiles.values())
    return Schedule((Tile("x", outer, across),), blocks, tuple(found), _warps(elements, blocks))


def _persistent_limit(params: Sequence[Param], weight: int, across: int) -> int:
    wide = any(param.dtype.itemsize == 8 for param in params)
    if across == 1 and weight <= _HEAVY and not wide:
        return 2 * _PERSISTENT
    return _PERSISTENT // ((2 if wide else 1) * (2 if weight > 2 * _HEAVY else 1))


def _warps(elements: int, blocks: Sequence[Block]) -> int:
    """8 elements for each thread, 4 where bodies are long."""
    share = 128 if _weight(blocks) > _HEAVY else 256
    return max(1, min(16, elements // share))


def _weight(blocks: Sequence[Block]) -> int:
    """The longest body: loads, and ops weighted by the registers that they take."""
    return max([sum(map(_statement_weight, block.body)) for block in blocks], default=0)


def _statement_weight(statement: Stmt) -> int:
    """Numbers of 8 bytes take two registers, also where narrow ones are converted or combined in place."""
    match statement:
        case Apply():
            return (3 if statement.op in LIBDEVICE else 1) * (2 if statement.dtype.itemsize == 8 else 1)
        case Load():
            return 2 if statement.dtype.itemsize == 8 else 1
        case Cast() | Reduce():
            return 2 if statement.dtype.itemsize == 8 else 0
        case _:
            return 0


def _typical(axes: Sequence[Axis]) -> int:
    return prod([typical(axis.size) for axis in axes])


def _all_known(sizes: Sequence[int | SizeParam]) -> bool:
    return not any(isinstance(size, SizeParam) for size in sizes)


def _power_of_2(size: int) -> int:
    """The least power of 2 that is not below `size`."""
    return 1 << max(size - 1, 0).bit_length()


INT32: Final = 2**31 - 1


def needs_wide_index(schedule: Schedule) -> bool:
    """Whether some index, or the number of some element, may be beyond 32 bits. With sizes that are parameters, yes."""
    if any((size := tile.known_size) is None or size + tile.block > INT32 for tile in schedule.tiles):
        return True
    for block in schedule.blocks:
        extents = {axis.name: axis.size for tile in schedule.programs for axis in tile.axes}
        extents |= {axis.name: axis.size for axis in block.axes}
        for statement in block.body:
            index = statement_index(statement)
            if index is not None and _reach(index, extents) > INT32:
                return True
    return False


def _reach(index: Index, extents: Mapping[str, int | SizeParam]) -> int:
    """A bound of the magnitude of the index."""
    sizes = [index.offset, *[c for _, c in index.terms], *[extents[axis] for axis, _ in index.terms]]
    if not _all_known(sizes):
        return INT32 + 1
    return abs(typical(index.offset)) + sum(abs(typical(c)) * typical(extents[axis]) for axis, c in index.terms)
