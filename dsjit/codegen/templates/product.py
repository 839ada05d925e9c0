"""Matrix products as Kernels, with what follows them in the same Kernel.

A library computes a product best when nothing follows it that must read the result again. Here, `aten.mm`, `bmm`,
`addmm` and `wide_product` become a Kernel. The map that alone reads the product becomes the end of it: bias,
activation, residual. A map that makes an operand of no more bytes than it has, for this product alone, is computed
where the operand is read: a weight in int8 times its scales is never there in bfloat16.
What the Kernel means is said by its statements, as always; that its sum may be done by matrix units is `Reduce.matrix`.

Before:
    t2 = aten.mm.default(x0, x1)      # a library call
    fused: t2 -> gelu(t2 + x2)        # a Kernel over all points of t2
After:
    for i in parallel(m):
        for n in parallel(n):
            for k in range(k):
                r = reduce_sum(x0[i, k] * x1[k, n], matrix='exact')
            t3[i, n] = gelu(r + x2[n])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import torch

from dsjit.codegen.gemm import Matrix, matrix_of
from dsjit.codegen.templates.points import OperandMap, Part, cut_axes, divide, points_of
from dsjit.fusion.affine import Affine, NotAffine, linearize
from dsjit.fusion.lower import FusedKernel, kernel_name
from dsjit.fusion.planner import LibraryUnit
from dsjit.fusion.views import Views
from dsjit.ir.dtypes import FLOAT8
from dsjit.ir.graph import Node, Value
from dsjit.ir.kernel import (
    Apply,
    Axis,
    Block,
    Cast,
    Constant,
    Index,
    Kernel,
    Load,
    MatrixPrecision,
    Param,
    Reduce,
    Stmt,
    Store,
    known,
)
from dsjit.ops.binding import bind
from dsjit.ops.wide_product import wide_product

__all__ = ["PRODUCT_OPS", "FusedProduct", "fuse_products", "matrix_precision"]

aten = torch.ops.aten

PRODUCT_OPS: Final = frozenset(
    {aten.mm.default, aten.bmm.default, aten.addmm.default, aten._scaled_mm.default, wide_product}
)
_DTYPES: Final = frozenset({torch.float32, torch.bfloat16, torch.float16})
_DEPTH: Final = "k"
"""The axis of the sum."""

Unit: TypeAlias = FusedKernel | LibraryUnit


@dataclass(frozen=True, slots=True)
class FusedProduct:
    """A product that may become a Kernel: of `library`, and of the Kernels that make operands or read the result.

    fused: does what all these do.
    """

    library: LibraryUnit
    makers: tuple[FusedKernel, ...]
    follower: FusedKernel | None
    fused: FusedKernel

    @property
    def kernels(self) -> tuple[FusedKernel, ...]:
        """What is a Kernel already."""
        return (*self.makers, self.follower) if self.follower is not None else self.makers

    @property
    def node(self) -> Node:
        """The product."""
        return self.library.node

    @property
    def replaced(self) -> tuple[Unit, ...]:
        """What the Kernel would stand for."""
        return (self.library, *self.kernels)

    @property
    def replacing(self) -> tuple[FusedKernel, ...]:
        return (self.fused,)


def matrix_precision(fast: bool) -> MatrixPrecision:
    """Of float32 products. fast: operands may be rounded, as with the option numerics="fast"."""
    return "tf32" if fast else "exact"


def fuse_products(
    units: Sequence[Unit],
    views: Views,
    results: Sequence[Value],
    precision: MatrixPrecision,
    prefers: Callable[[FusedProduct], bool],
) -> list[Unit]:
    """`units`, with those products as Kernels that `prefers` says yes to.

    results: what the Graph returns and writes, which must be in memory. precision: of float32 products.
    """
    readers: dict[Value, list[Unit]] = {}
    for unit in units:
        reads = unit.reads if isinstance(unit, FusedKernel) else tuple(unit.node.inputs())
        for value in dict.fromkeys(map(views.base, reads)):
            readers.setdefault(value, []).append(unit)
    kept = {views.base(value) for value in results}
    makers = {unit.writes[0]: unit for unit in units if isinstance(unit, FusedKernel) and len(unit.writes) == 1}
    found: dict[Unit, Unit | None] = {}
    for unit in units:
        if not isinstance(unit, LibraryUnit) or unit.view or unit.node.op not in PRODUCT_OPS:
            continue
        product = _Product.of(unit.node, views, precision)
        if product is None:
            continue
        own = [
            makers[matrix.base]
            for matrix in (product.left, product.right)
            if matrix.base in makers and readers[matrix.base] == [unit] and matrix.base not in kept
        ]
        product = product.with_prologues([maker for maker in own if maker not in found])
        used = tuple([maker for maker in own if maker in product.makers.values()])
        users = readers.get(unit.node.output, [])
        follower = fused = None
        if len(users) == 1 and unit.node.output not in kept and users[0] not in found:
            follower = users[0] if isinstance(users[0], FusedKernel) else None
            fused = product.with_epilogue(follower) if follower is not None else None
        choice = FusedProduct(unit, used, follower if fused else None, fused or product.alone())
        if prefers(choice):
            found.update(dict.fromkeys((unit, *choice.kernels)))
            found[choice.follower or unit] = choice.fused
    return [new for unit in units if (new := found.get(unit, unit)) is not None]


@dataclass(frozen=True, slots=True)
class _Product:
    """`out = left @ right`, or with a bias (rows and columns of which may be the same all over: then its stride is 0).

    sizes: batch, rows, columns, depth. makers: by side, the Kernel whose element is computed where it is read.
    scales: what the sum is multiplied by, in float32, each laid out as a bias is. operand: the dtype of both operands.
    """

    node: Node
    left: Matrix
    right: Matrix
    bias: Matrix | None
    alpha: float
    beta: float
    sizes: tuple[int, int, int, int]
    precision: MatrixPrecision
    operand: torch.dtype
    scales: tuple[Matrix, ...] = ()
    makers: Mapping[str, FusedKernel] = field(default_factory=dict)

    @staticmethod
    def of(node: Node, views: Views, precision: MatrixPrecision) -> _Product | None:
        """None for what is no product of dense floats."""
        if node.op is aten._scaled_mm.default:
            return _scaled_product(node, views, precision)
        out = node.output.type
        tensors = [arg for arg in node.args if isinstance(arg, Value)]
        if any(isinstance(arg, Value) for arg in node.kwargs.values()):
            return None
        if out.dtype not in _DTYPES or not out.is_contiguous or 0 in out.shape:
            return None
        operand = tensors[-1].type.dtype
        if node.op is not wide_product and operand is not out.dtype:
            return None
        if any(value.type.dtype is not operand or value.type.device != out.device for value in tensors):
            return None
        *lead, rows, columns = out.shape
        matrices = [matrix_of(value, views) for value in tensors[-2:]]
        bias = _bias(tensors[0], views) if len(tensors) == 3 else None
        left, right = matrices
        depth = tensors[-1].type.shape[-2]
        if left is None or right is None or (bias is None and len(tensors) == 3) or depth == 0:
            return None
        alpha, beta = (float(node.kwargs.get(name, 1)) for name in ("alpha", "beta"))
        sizes = (lead[0] if lead else 1, rows, columns, depth)
        return _Product(node, left, right, bias, alpha, beta, sizes, precision, operand)

    def with_prologues(self, makers: Sequence[FusedKernel]) -> _Product:
        """With those of `makers` computed where they are read that are maps of as many bytes as they make, or fewer:
        each tile of the result computes them again."""
        found: dict[str, FusedKernel] = {}
        for side, matrix in (("left", self.left), ("right", self.right)):
            for maker in makers:
                read = sum(value.type.nbytes for value in maker.reads)
                if maker.writes == (matrix.base,) and read <= matrix.base.type.nbytes:
                    candidate = replace(self, makers={**found, side: maker})
                    if candidate._is_possible(side):
                        found[side] = maker
        return replace(self, makers=found)

    def _is_possible(self, side: str) -> bool:
        """Whether what makes the operand can be computed where it is read."""
        across = self.sizes[1 if side == "left" else 2]
        if self._operand_map(side) is None or self._depth() is None:
            return False
        return divide(across, self._strides(False, side)) is not None

    def _operand_map(self, side: str) -> OperandMap | None:
        """What makes an operand; None when it is no map, or the operand is not all that it makes."""
        matrix, maker = (self.left, self.makers[side]) if side == "left" else (self.right, self.makers[side])
        _, rows, columns, depth = self.sizes
        across, stride = (rows, matrix.row) if side == "left" else (columns, matrix.column)
        along = matrix.column if side == "left" else matrix.row
        shape = (across, depth) if (stride, along) == (depth, 1) else (depth, across)
        dense = matrix.offset == 0 and {stride, along} == {1, shape[1]} and self.sizes[0] == 1
        if not dense or matrix.base.type.numel != across * depth or 1 in (across, depth):
            return None
        return OperandMap.of(maker.kernel, _param(matrix.base), *shape)

    def _strides(self, along: bool, side: str) -> tuple[int, ...]:
        """Of the parts into which the map that makes an operand cuts the sum, or else the rows or columns of the
        result."""
        made = self._operand_map(side) if side in self.makers else None
        if made is None:
            return ()
        by_rows = (self.left.column if side == "left" else self.right.row) == 1
        return tuple([part.stride for part in (made.columns if by_rows == along else made.rows)])

    def _depth(self) -> tuple[Part, ...] | None:
        """The axes of the sum: several, where what makes an operand cuts it into groups, or words into numbers."""
        parts = divide(self.sizes[3], (*self._strides(True, "left"), *self._strides(True, "right")))
        if parts is None:
            return None
        names = [_DEPTH] if len(parts) == 1 else [f"{_DEPTH}{number}" for number in range(len(parts))]
        return tuple([Part(name, *part) for name, part in zip(names, parts, strict=True)])

    @property
    def _boundaries(self) -> tuple[int, ...]:
        """In elements of the result: what no axis of it may step over."""
        rows = [stride * self.sizes[2] for stride in self._strides(False, "left")]
        return tuple(sorted({*self._strides(False, "right"), *rows} - {1}))

    def alone(self) -> FusedKernel:
        """The Kernel that stores the product."""
        batch, rows, columns, _ = self.sizes
        name = _param(self.node.output)
        axes = tuple([Axis(f"i{n}", size) for n, size in enumerate((batch, rows, columns)) if n or batch > 1])
        places = (rows * columns, columns, 1)[3 - len(axes) :]
        index = Index(0, tuple([(axis.name, place) for axis, place in zip(axes, places, strict=True)]))
        cut = cut_axes(axes, Block((), (Store(name, index, name),)), name, self._boundaries)
        assert cut is not None
        axes, _, index = cut
        statements, result = self._statements(index)
        store = Store(name, index, result)
        return self._kernel(axes, (*statements, store), {self.node.output: Param(name, self._dtype, "write")}, ())

    def with_epilogue(self, follower: FusedKernel) -> FusedKernel | None:
        """The Kernel that is the product and `follower`, which reads it; None when `follower` is no map of it."""
        kernel = follower.kernel
        name = next(p.name for v, p in zip(follower.values, kernel.params, strict=True) if v is self.node.output)
        points = points_of(kernel, name, self.sizes, self._boundaries)
        if points is None:
            return None
        axes, body, index = points
        statements, result = self._statements(index)
        for statement in body:
            # A load of the product is the product; names of the two parts differ.
            if isinstance(statement, Load) and statement.param == name:
                statements += (Cast(statement.result, result, self._dtype),)
            else:
                statements += (statement,)
        params = dict(zip(follower.values, kernel.params, strict=True))
        del params[self.node.output]
        return self._kernel(axes, statements, params, follower.nodes)

    @property
    def _dtype(self) -> torch.dtype:
        return self.node.output.type.dtype

    def _statements(self, index: Index) -> tuple[tuple[Stmt, ...], str]:
        """What computes the element of the result that lies at `index`, and its name. The first part of it, up to the
        sum, belongs into the loop."""
        source, dtype = self.node.source, self._dtype
        body: list[Stmt] = []
        # The left operand has no columns of the result's, the right one no rows of it.
        sides = (
            ("left", self.left, replace(self.left, column=0), self.left.column),
            ("right", self.right, replace(self.right, row=0), self.right.row),
        )
        parts = self._depth()
        assert parts is not None
        deep = Index(0, tuple([(part.axis, part.stride) for part in parts]))
        for side, matrix, across, stride in sides:
            if side in self.makers:
                step = across.row if side == "left" else across.column
                lines = self._place(replace(across, offset=0), index)
                place = Index(0, tuple([(axis, known(each) // step) for axis, each in lines.terms]))
                made = self._operand_map(side)
                assert made is not None
                statements, name = made.at(*((place, deep) if stride == 1 else (deep, place)), f"p_{side}_")
                body += statements
                body.append(Cast(f"p_{side}_wide", name, torch.float32))
                continue
            place = self._place(across, index)
            terms = (*place.terms, *[(axis, known(each) * stride) for axis, each in deep.terms if stride])
            body.append(Load(f"p_{side}", _param(matrix.base), Index(place.offset, terms), self.operand))
            body.append(Cast(f"p_{side}_wide", f"p_{side}", torch.float32))
        body.append(Apply("p_product", "mul", ("p_left_wide", "p_right_wide"), torch.float32, source))
        body.append(Reduce("p_sum", "sum", "p_product", torch.float32, None, source, self.precision))
        result = self._scaled(body, "p_sum", self.alpha)
        for number, scale in enumerate(self.scales):
            body.append(Load(f"p_scale{number}", _param(scale.base), self._place(scale, index), torch.float32))
            body.append(Apply(f"p_by{number}", "mul", (result, f"p_scale{number}"), torch.float32, source))
            result = f"p_by{number}"
        if self.bias is not None and self.beta:
            body.append(Load("p_bias", _param(self.bias.base), self._place(self.bias, index), dtype))
            body.append(Cast("p_bias_wide", "p_bias", torch.float32))
            addend = self._scaled(body, "p_bias_wide", self.beta)
            body.append(Apply("p_biased", "add", (result, addend), torch.float32, source))
            result = "p_biased"
        body.append(Cast("p_result", result, dtype))
        return tuple(body), "p_result"

    def _scaled(self, body: list[Stmt], name: str, factor: float) -> str:
        if factor == 1:
            return name
        body.append(Constant(f"{name}_factor", factor, torch.float32))
        body.append(Apply(f"{name}_scaled", "mul", (name, f"{name}_factor"), torch.float32, self.node.source))
        return f"{name}_scaled"

    def _place(self, matrix: Matrix, index: Index) -> Index:
        """Of the element of `matrix` in the same batch, row and column as the element of the result at `index`."""
        _, rows, columns, _ = self.sizes
        terms: list[tuple[str, int]] = []
        for axis, step in index.terms:
            step = known(step)
            if step >= rows * columns:
                stride = step // (rows * columns) * matrix.batch
            elif step >= columns:
                stride = step // columns * matrix.row
            else:
                stride = step * matrix.column
            if stride:
                terms.append((axis, stride))
        return Index(matrix.offset, tuple(terms))

    def _kernel(
        self, axes: tuple[Axis, ...], body: Sequence[Stmt], params: dict[Value, Param], nodes: tuple[Node, ...]
    ) -> FusedKernel:
        """params: by Value, of what is fused behind. nodes: that this is."""
        cut = 1 + next(number for number, statement in enumerate(body) if isinstance(statement, Reduce))
        parts = self._depth()
        assert parts is not None
        loop = Block(tuple([Axis(part.axis, part.size) for part in parts]), tuple(body[:cut]))
        sides = {"left": self.left, "right": self.right}
        read = [matrix.base for side, matrix in sides.items() if side not in self.makers]
        read += [value for maker in self.makers.values() for value in maker.reads]
        read += [scale.base for scale in self.scales]
        read += [self.bias.base] if self.bias is not None and self.beta else []
        for value in read:
            if value not in params:
                params[value] = Param(_param(value), value.type.dtype, "read")
        every = (*(node for maker in self.makers.values() for node in maker.nodes), self.node, *nodes)
        blocks = (loop, Block((), tuple(body[cut:])))
        kernel = Kernel(kernel_name(every), tuple(params.values()), axes, blocks, parts[-1].axis)
        return FusedKernel(kernel, tuple(params), every)


def _param(value: Value) -> str:
    return f"t{value.id}"


def _bias(value: Value, views: Views) -> Matrix | None:
    """A row, a column, a number or a matrix, as a matrix that repeats it."""
    where = matrix_of(value, views) if len(value.type.shape) > 1 else None
    if where is None:
        try:
            base, index = views.follow(value, (Affine(),) * len(value.type.shape), {})
        except NotAffine:
            return None
        where = Matrix(base, linearize(index, base.type.strides).offset, 0, 0, 0)
    strides = [s if n != 1 else 0 for n, s in zip(value.type.shape, value.type.strides, strict=True)]
    row, column = ([0, 0] + strides)[-2:]
    return replace(where, row=row, column=column)


def _scaled_product(node: Node, views: Views, precision: MatrixPrecision) -> _Product | None:
    """Of float8, scaled as a whole or by rows and columns: `(left @ right) * scale_a * scale_b + bias`."""
    bound, out = bind(node), node.output.type
    left, right = (matrix_of(bound[name], views) for name in ("self", "mat2"))
    dtypes = {bound[name].type.dtype for name in ("self", "mat2")}
    given = [bound["scale_a"], bound["scale_b"]]
    (rows, depth), columns = bound["self"].type.shape, out.shape[1]
    shapes = ((rows, 1), (1, columns))
    fits = all(
        scale.type.dtype is torch.float32 and (scale.type.numel == 1 or scale.type.shape == shape)
        for scale, shape in zip(given, shapes, strict=True)
    )
    scales = [_bias(scale, views) for scale in given]
    bias = None if bound["bias"] is None else _bias(bound["bias"], views)
    if left is None or right is None or len(dtypes) > 1 or not dtypes <= FLOAT8 or not fits or None in scales:
        return None
    if bound["scale_result"] is not None or out.dtype not in _DTYPES or not out.is_contiguous or 0 in out.shape:
        return None
    if bound["bias"] is not None and (bias is None or bound["bias"].type.dtype is not out.dtype):
        return None
    sizes = (1, rows, columns, depth)
    found = tuple([scale for scale in scales if scale is not None])
    return _Product(node, left, right, bias, 1.0, 1.0, sizes, precision, dtypes.pop(), found)
