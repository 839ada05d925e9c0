"""Kernel to Triton source when it is a matrix product: tiles of the result, added up by matrix units.

Such a Kernel is an ordinary one: a sum over one axis whose operand is a product (`Reduce.matrix`), and after it
whatever was fused behind. What makes the operands of the product may be any expression, too: the left one may not
depend on the columns of the result, nor the right one on its rows. So prologue and epilogue are the Kernel's own
statements, and there is no other definition of a template than what the Kernel interpreter does with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Final

import torch

from dsjit.codegen.nest import statement_index
from dsjit.codegen.operands import axes_of, dtype_of, narrow_operand, operand_statements
from dsjit.codegen.triton.emitter import KernelEmitter, Variable
from dsjit.codegen.triton.indices import AxisVariable
from dsjit.codegen.triton.layout import Layout
from dsjit.codegen.triton.schedule import Schedule, Tile
from dsjit.codegen.triton.source import KernelSource, identifier
from dsjit.codegen.triton.unpacking import common_step, depth_strides, placed, without_masks
from dsjit.ir.kernel import (
    Apply,
    Axis,
    Block,
    Check,
    Index,
    Kernel,
    Load,
    MatrixPrecision,
    Reduce,
    Stmt,
    Store,
    known,
    names_read,
)

__all__ = ["Contraction", "ProductTile", "contraction_of", "emit_contraction"]

_GROUP: Final = 8
"""Tiles of rows that are walked together, so that what they read of the right operand is in the L2 cache."""


@dataclass(frozen=True, slots=True)
class ProductTile:
    """How a product is cut up: rows and columns of the result for one program, and how much of the sum at a time.

    All three are powers of 2 and at least 16, the least that matrix units take. stages: of the pipeline of loads.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Contraction:
    """A matrix product in a Kernel: `batch` products of `rows` by `depth` by `columns`, over these of its axes.

    depth: several axes where operands are made of packed numbers or of groups; the last one is the fastest.

    left, right: the statements that make each operand, and the name of the operand as matrix units take it.
    reduce: their sum. after: what is done with it. operand: the dtype of both operands.
    """

    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    depth: tuple[Axis, ...]
    left: tuple[tuple[Stmt, ...], str]
    right: tuple[tuple[Stmt, ...], str]
    reduce: Reduce
    after: tuple[Stmt, ...]
    operand: torch.dtype

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Elements along batch, rows, columns and depth."""
        sides = [prod([known(axis.size) for axis in axes]) for axes in self._sides]
        return sides[0], sides[1], sides[2], sides[3]

    @property
    def _sides(self) -> tuple[tuple[Axis, ...], ...]:
        return self.batch, self.rows, self.columns, self.depth

    @property
    def precision(self) -> MatrixPrecision:
        assert self.reduce.matrix is not None
        return self.reduce.matrix


def contraction_of(kernel: Kernel) -> Contraction | None:
    """The product that the Kernel is; None when it is none, and for sizes that are parameters."""
    if kernel.sizes or len(kernel.blocks) < 2 or not kernel.blocks[0].axes:
        return None
    first, *others = kernel.blocks
    reduce = first.body[-1]
    if not isinstance(reduce, Reduce) or reduce.matrix is None or any(block.axes for block in others):
        return None
    made = {statement.result: statement for statement in first.body if not isinstance(statement, Store | Check)}
    product = made.get(reduce.arg)
    if not isinstance(product, Apply) or product.op != "mul":
        return None
    left, right = (operand_statements(arg, made) for arg in product.args)
    depth = first.axes
    left_axes, right_axes = axes_of(left.values()), axes_of(right.values())
    if not {axis.name for axis in depth} <= left_axes & right_axes:
        return None
    sides: dict[str, list[Axis]] = {"batch": [], "rows": [], "columns": []}
    for axis in kernel.outer:
        shared = (axis.name in left_axes) == (axis.name in right_axes)
        sides["batch" if shared else "rows" if axis.name in left_axes else "columns"].append(axis)
    if not sides["rows"] or not sides["columns"]:
        return None
    names = [narrow_operand(arg, made) for arg in product.args]
    dtypes = {dtype_of(made[name]) for name in names}
    if len(dtypes) > 1:
        names, dtypes = list(product.args), {dtype_of(made[arg]) for arg in product.args}
    axes = {axis.name: axis for axis in depth}
    operands = [(without_masks(tuple(operand_statements(name, made).values()), name, axes), name) for name in names]
    return Contraction(
        tuple(sides["batch"]),
        tuple(sides["rows"]),
        tuple(sides["columns"]),
        depth,
        operands[0],
        operands[1],
        reduce,
        tuple([statement for block in others for statement in block.body]),
        dtypes.pop(),
    )


def emit_contraction(
    kernel: Kernel, contraction: Contraction, tile: ProductTile, name: str | None = None
) -> KernelSource:
    """The Triton source of a Kernel that is a matrix product. The text depends on the arguments alone."""
    rows = Tile("y", contraction.rows, tile.rows)
    columns = Tile("x", contraction.columns, tile.columns)
    batch = (Tile("z", contraction.batch, 1),) if contraction.batch else ()
    depth = Tile("k", contraction.depth, tile.depth, looped=True)
    blocks = (kernel.blocks[0], Block((), contraction.after))
    schedule = Schedule((*batch, rows, columns), blocks, (depth, None), tile.warps, tile.stages)
    return _ContractionEmitter(
        kernel, schedule, name or identifier(kernel.name), float8_as_bits=False, contraction=contraction
    ).emit()


@dataclass(slots=True)
class _ContractionEmitter(KernelEmitter):
    contraction: Contraction | None = None

    def _programs(self) -> None:
        """Which tile of the result each program works on: tiles near each other at about the same time."""
        rows, columns = self.schedule.programs[-2:]
        self.layout = Layout(Schedule((rows, columns), self.schedule.blocks, (), self.schedule.warps), self.names)
        wide = ".to(tl.int64)" if self.wide else ""
        down, across = (self.layout.count(tile) for tile in (rows, columns))
        high = self._fresh("high")
        self._line(f"program = tl.program_id(0){wide}")
        if any(tile.name == "z" for tile in self.schedule.programs):
            self._line(f"z = program // ({down} * {across})")
            self._line(f"program = program % ({down} * {across})")
            batch = self.schedule.programs[0]
            found = self._decompose(batch, batch.axes)
            self.axes |= {axis: AxisVariable(variable.axis, variable.name, "") for axis, variable in found.items()}
        group = self._fresh("group")
        self._line(f"{group} = program // ({_GROUP} * {across}) * {_GROUP}")
        self._line(f"{high} = tl.minimum({down} - {group}, {_GROUP})")
        self._line(f"program = program % ({_GROUP} * {across})")
        for tile, place in ((rows, f"{group} + program % {high}"), (columns, f"program // {high}")):
            self._line(f"{tile.name} = ({place}) * {tile.constant} + {self.layout.lanes(tile)}")
            self._bound(tile)
            self.axes |= self._decompose(tile, tile.axes)

    def _blocks(self) -> None:
        contraction = self.contraction
        assert contraction is not None
        rows, columns = self.schedule.programs[-2:]
        depth = self.schedule.rows[0]
        assert depth is not None
        result = self._fresh(contraction.reduce.result)
        whole = self.layout
        self._line(f"{result} = tl.full([{rows.constant}, {columns.constant}], 0.0, tl.float32)")
        start, size = "k_start", str(contraction.sizes[3])
        with self._inside(f"for {start} in range(0, {size}, {depth.constant}):"):
            self.fills = True
            left = self._operand(contraction.left, rows, depth, first=True)
            right = self._operand(contraction.right, columns, depth, first=False)
            self.fills = False
            self.layout = whole
            precision = "tf32" if contraction.precision == "tf32" else "ieee"
            text = f"tl.dot({left}, {right}, {result}, input_precision={precision!r})"
            self._line(f"{result} = {text}", contraction.reduce.source)
        self.values[contraction.reduce.result] = Variable(result, torch.float32, frozenset({"y", "x"}))
        self._body(contraction.after, None)

    def _operand(self, side: tuple[tuple[Stmt, ...], str], across: Tile, depth: Tile, first: bool) -> str:
        """The tile of one operand, whose elements beyond the end of the sum are 0. first: the sum is along columns."""
        (statements, name), stem = side, "ka" if first else "kb"
        _, own = self._places(stem, depth, 1, across, first)
        assert own is not None
        levels: dict[int, tuple[str, Tile | None]] = {1: (own.name, own)}
        for each in placed(statements, depth_strides(depth.axes)):
            statement, tile = each.statement, None
            if each.shared is not None:
                if each.shared not in levels:
                    levels[each.shared] = self._places(stem, depth, each.shared, across, first)
                place, tile = levels[each.shared]
                statement = self._at_places(statement, each.shared, depth, place)
            self.layout = self._operand_layout(across, tile, first)
            before = dict(self.values)
            self.values |= {arg: self._repeated(before[arg], tile, across, first) for arg in names_read(statement)}
            self._body((statement,), None)
            self.values |= before
        self.layout = self._operand_layout(across, own, first)
        value = self._repeated(self.values[name], own, across, first)
        text = value.name
        if not own.is_exact and not isinstance(statements[-1], Load):
            text = f"tl.where({own.name}_in, {text}, 0.0)"
        both = frozenset({across.name, own.name})
        if value.tiles != both:
            text = f"tl.broadcast_to({text}, {self.layout.shape(both, None)})"
        return text

    def _operand_layout(self, across: Tile, own: Tile | None, first: bool) -> Layout:
        tiles = (across, own or Tile("", (), 1))
        return Layout(
            Schedule(tiles if first else tiles[::-1], self.schedule.blocks, (), self.schedule.warps), self.names
        )

    def _places(self, stem: str, depth: Tile, shared: int, across: Tile, first: bool) -> tuple[str, Tile | None]:
        """The variable of a tile with a place for each `shared` elements along the sum; no tile where there is one."""
        name = self._fresh(stem if shared == 1 else f"{stem}_{shared}")
        self.taken.add(f"{name}_in")
        axis = Axis(name, prod([known(each.size) for each in depth.axes]) // shared)
        start = "k_start" if shared == 1 else f"k_start // {shared}"
        if shared >= depth.block:
            self._line(f"{name} = {start}")
            self.axes[name] = AxisVariable(axis, name, "")
            return name, None
        tile = Tile(name, (axis,), depth.block // shared, looped=True, shares="k" if shared == 1 else "")
        self.tiles[name] = tile
        self._line(f"{name} = {start} + {self._operand_layout(across, tile, first).lanes(tile)}")
        self._bound(tile)
        self.axes[name] = AxisVariable(axis, name, name)
        return name, tile

    def _at_places(self, statement: Stmt, shared: int, depth: Tile, place: str) -> Stmt:
        """The statement with the variable of a tile in its index, in place of axes of the sum."""
        index, strides = statement_index(statement), depth_strides(depth.axes)
        if index is None or not any(axis in strides for axis, _ in index.terms):
            return statement
        terms = [(axis, step) for axis, step in index.terms if axis not in strides]
        step = common_step(index, shared, strides)
        if step is not None:
            return replace(statement, index=Index(index.offset, (*terms, (place, step))))  # type: ignore[arg-type]
        first = depth.axes[0].name
        for axis in [axis for axis in depth.axes if index.coefficient(axis.name)]:
            name = f"{place}_{axis.name}"
            if name not in self.axes:
                divisor, size = strides[axis.name] // shared, known(axis.size)
                text = place + (f" // {divisor}" if divisor > 1 else "") + (f" % {size}" if axis.name != first else "")
                self.axes[name] = AxisVariable(axis, self._fresh(name), self.axes[place].tile)
                self._line(f"{self.axes[name].name} = {text}")
            terms.append((name, index.coefficient(axis.name)))
        return replace(statement, index=Index(index.offset, tuple(terms)))  # type: ignore[arg-type]

    def _repeated(self, variable: Variable, tile: Tile | None, across: Tile, first: bool) -> Variable:
        """A value of a coarser tile at each place of a finer one."""
        coarse = next((self.tiles[name] for name in variable.tiles if name != across.name), tile)
        if tile is None or coarse is None or coarse is tile:
            return variable
        other = across.constant if across.name in variable.tiles else "1"
        times, places = str(tile.block // coarse.block), coarse.constant
        wide = [other, places, times] if first else [places, times, other]
        shape = [other, tile.constant] if first else [tile.constant, other]
        text = f"tl.broadcast_to(tl.expand_dims({variable.name}, {2 if first else 1}), [{', '.join(wide)}])"
        key, tiles = ("repeated", variable.name, tile.name), variable.tiles - {coarse.name} | {tile.name}
        name = f"{variable.name}_each"
        self._define(name, f"tl.reshape({text}, [{', '.join(shape)}])", variable.dtype, tiles, key)
        return self.values[name]
