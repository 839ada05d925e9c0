"""Kernel to Triton source when it is a matrix product: tiles of the result, added up by matrix units.

Such a Kernel is an ordinary one: a sum over one axis whose operand is a product (`Reduce.matrix`), and after it
whatever was fused behind. What makes the operands of the product may be any expression, too: the left one may not
depend on the columns of the result, nor the right one on its rows. So prologue and epilogue are the Kernel's own
statements, and there is no other definition of a template than what the Kernel interpreter does with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

import torch

from dsjit.codegen.operands import axes_of, dtype_of, narrow_operand, operand_statements
from dsjit.codegen.triton.emitter import KernelEmitter, Variable, identifier
from dsjit.codegen.triton.indices import AxisVariable, size_text
from dsjit.codegen.triton.layout import Layout
from dsjit.codegen.triton.schedule import Schedule, Tile
from dsjit.codegen.triton.source import KernelSource
from dsjit.ir.kernel import Apply, Axis, Block, Kernel, Load, MatrixPrecision, Reduce, Stmt, Store, known

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

    left, right: the statements that make each operand, and the name of the operand as matrix units take it.
    reduce: their sum. after: what is done with it. operand: the dtype of both operands.
    """

    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    depth: Axis
    left: tuple[tuple[Stmt, ...], str]
    right: tuple[tuple[Stmt, ...], str]
    reduce: Reduce
    after: tuple[Stmt, ...]
    operand: torch.dtype

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Elements along batch, rows, columns and depth."""
        sides = [prod([known(axis.size) for axis in axes]) for axes in (self.batch, self.rows, self.columns)]
        return sides[0], sides[1], sides[2], known(self.depth.size)

    @property
    def precision(self) -> MatrixPrecision:
        assert self.reduce.matrix is not None
        return self.reduce.matrix


def contraction_of(kernel: Kernel) -> Contraction | None:
    """The product that the Kernel is; None when it is none, and for sizes that are parameters."""
    if kernel.sizes or len(kernel.blocks) < 2 or len(kernel.blocks[0].axes) != 1:
        return None
    first, *others = kernel.blocks
    reduce = first.body[-1]
    if not isinstance(reduce, Reduce) or reduce.matrix is None or any(block.axes for block in others):
        return None
    made = {statement.result: statement for statement in first.body if not isinstance(statement, Store)}
    product = made.get(reduce.arg)
    if not isinstance(product, Apply) or product.op != "mul":
        return None
    left, right = (operand_statements(arg, made) for arg in product.args)
    depth = first.axes[0]
    left_axes, right_axes = axes_of(left.values()), axes_of(right.values())
    if depth.name not in left_axes & right_axes:
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
    return Contraction(
        tuple(sides["batch"]),
        tuple(sides["rows"]),
        tuple(sides["columns"]),
        depth,
        (tuple(operand_statements(names[0], made).values()), names[0]),
        (tuple(operand_statements(names[1], made).values()), names[1]),
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
    depth = Tile("k", (contraction.depth,), tile.depth, looped=True)
    blocks = (kernel.blocks[0], Block((), contraction.after))
    schedule = Schedule((*batch, rows, columns), blocks, (depth, None), tile.warps, tile.stages)
    return _ContractionEmitter(kernel, schedule, name or identifier(kernel.name), contraction=contraction).emit()


@dataclass(slots=True)
class _ContractionEmitter(KernelEmitter):
    contraction: Contraction | None = None

    def _programs(self) -> None:
        """Which tile of the result each program works on: tiles near each other at about the same time."""
        rows, columns = self.schedule.programs[-2:]
        self.layout = Layout(Schedule((rows, columns), self.schedule.blocks, (), self.schedule.warps), self.names)
        wide = ".to(tl.int64)" if self.wide else ""
        down, across = (self.layout.count(tile) for tile in (rows, columns))
        self.taken |= {"ka", "kb", "ka_in", "kb_in"}
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
        start, size = "k_start", size_text(contraction.depth.size, self.names)
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
        axis = depth.axes[0]
        own = Tile("ka" if first else "kb", (axis,), depth.block, looped=True, shares="k")
        programs = (across, own) if first else (own, across)
        self.layout = Layout(Schedule(programs, self.schedule.blocks, (), self.schedule.warps), self.names)
        self.tiles[own.name] = own
        self._line(f"{own.name} = k_start + {self.layout.lanes(own)}")
        self._bound(own)
        self.axes[axis.name] = AxisVariable(axis, own.name, own.name)
        statements, name = side
        self._body(statements, None)
        value = self.values[name]
        text = value.name
        if not own.is_exact and not isinstance(statements[-1], Load):
            text = f"tl.where({own.name}_in, {text}, 0.0)"
        both = frozenset({across.name, own.name})
        if value.tiles != both:
            text = f"tl.broadcast_to({text}, {self.layout.shape(both, None)})"
        return text
