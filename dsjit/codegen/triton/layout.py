"""The dimensions of the values of a Triton program, and the sizes of its tiles, as the source has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsjit.codegen.triton.indices import size_text
from dsjit.codegen.triton.schedule import Schedule, Tile

__all__ = ["Layout"]


@dataclass(frozen=True, slots=True)
class Layout:
    """names: of the sizes that are parameters, as the source calls them."""

    schedule: Schedule
    names: Mapping[str, str]

    def lanes(self, tile: Tile) -> str:
        """0 to the size of a block, in the dimension that belongs to the tile."""
        text = f"tl.arange(0, {tile.constant})"
        order = self.order(tile)
        if len(order) > 1:
            text += f"[{', '.join(':' if name == tile.name else 'None' for name in order)}]"
        return text

    def order(self, rows: Tile | None) -> tuple[str, ...]:
        """The names of the tiles that are the dimensions of values, given the tile over rows of the block."""
        programs = tuple([tile.name for tile in self.schedule.programs])
        if rows is not None and rows.name not in programs:
            return (*programs, rows.name)
        looping = [tile for tile in self.schedule.rows if tile is not None]
        return (*programs, looping[0].name) if looping else programs

    def shape(self, tiles: frozenset[str], rows: Tile | None) -> str:
        """Of values that vary along these tiles."""
        constants = {tile.name: tile.constant for tile in self.schedule.tiles}
        order = self.order(rows)
        return f"[{', '.join(constants[name] if name in tiles else '1' for name in order)}]"

    def size(self, tile: Tile) -> str:
        if tile.known_size is not None:
            return str(tile.known_size)
        return " * ".join(size_text(axis.size, self.names) for axis in tile.axes)

    def count(self, tile: Tile) -> str:
        """How many blocks the tile has."""
        if tile.known_size is not None:
            return str(-(-tile.known_size // tile.block))
        return f"(({self.size(tile)} + {tile.constant} - 1) // {tile.constant})"
