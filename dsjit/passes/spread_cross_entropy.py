"""A linear layer under a cross entropy in chunks, as products and pointwise ops for each chunk.

Why: where kernels are for a GPU, a call of the library for each step of each chunk would leave it waiting for launches.
Written with ops, a chunk is the product that makes its logits, one kernel that goes along their rows (largest, sum of
exponentials, loss, gradient), and a product for each operand that wants a gradient. Logits are those of a chunk still:
the pass comes when products of equal operands are merged already.

In bfloat16 and float16, what the kernel computes is float32, rounded where eager rounds: logits by their product, the
logarithms of probabilities (unless logits are converted to float32 first), and the gradient. Products of the gradient
are float32 until all chunks are added up.

Before:
    def graph(x0: f32[128, 8], x1: f32[8, 4096], x2: i64[128]):
        t3, t4, t5 = linear_cross_entropy(x0, x1, None, x2, 2, -100, [False, True, False], False)
        return t3, t5
After:
    def graph(x0: f32[128, 8], x1: f32[8, 4096], x2: i64[128]):
        t3 = aten.full.default([], 0.0, dtype=torch.float32, device=torch.device('cpu'))
        t4 = aten.ne.Scalar(x2, -100)
        t5 = aten.sum.dim_IntList(t4, [0])
        t6 = aten._to_copy.default(t5, dtype=torch.float32)
        t7 = aten._to_copy.default(t4, dtype=torch.float32)
        t8 = aten.unsqueeze.default(t7, 1)
        t9 = aten.arange.default(4096, dtype=torch.int32, device=torch.device('cpu'))
        t10 = aten.arange.default(4096, dtype=torch.int64, device=torch.device('cpu'))
        t11 = aten.full.default([], 0, dtype=torch.int64, device=torch.device('cpu'))
        t12 = aten.where.self(t4, x2, t11)
        t13 = aten.index_select.default(t10, 0, t12)
        t14 = aten._to_copy.default(t13, dtype=torch.int32)
        t15 = aten.unsqueeze.default(t14, 1)
        t16 = aten.slice.Tensor(x0, 0, 0, 128)
        t17 = aten.slice.Tensor(t15, 0, 0, 128)
        t18 = aten.slice.Tensor(t8, 0, 0, 128)
        t19 = aten.mm.default(t16, x1)
        t20 = aten.amax.default(t19, [1], True)
        t21 = aten.sub.Tensor(t19, t20)
        t22 = aten.exp.default(t21)
        t23 = aten.sum.dim_IntList(t22, [1], True)
        t24 = aten.eq.Tensor(t9, t17)
        t25 = aten.where.self(t24, t21, t3)
        t26 = aten.sum.dim_IntList(t25, [1])
        t27 = aten.log.default(t23)
        t28 = aten.squeeze.dim(t27, 1)
        t29 = aten.sub.Tensor(t28, t26)
        t30 = aten.div.Tensor(t18, t23)
        t31 = aten.mul.Tensor(t22, t30)
        t32 = aten.where.self(t24, t18, t3)
        t33 = aten.sub.Tensor(t31, t32)
        t34 = aten.t.default(t33)
        t35 = aten.mm.default(t34, t16)
        t36 = aten.where.self(t4, t29, t3)
        t37 = aten.sum.dim_IntList(t36, [0], dtype=torch.float64)
        t38 = aten._to_copy.default(t37, dtype=torch.float32)
        return t38, t35
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch

from dsjit.ir.dtypes import compute_dtype
from dsjit.ir.graph import Graph, Node, TensorType, Value, contiguous_strides
from dsjit.ops.builder import Builder
from dsjit.ops.cross_entropy import MEAN, UNITS, linear_cross_entropy
from dsjit.ops.wide_product import wide_product
from dsjit.passes.rewrite import substitute

__all__ = ["spread_cross_entropy"]

aten = torch.ops.aten

CHUNK_BYTES: Final = 512 * 2**20
"""Of logits at once: a small part of a GPU's memory, and few chunks, each of which reads and writes the gradient of the
weight once more."""

LEAST_ROWS: Final = 128
"""Of a chunk: about as many as a GPU has processors."""


def spread_cross_entropy(graph: Graph) -> Graph:
    """Each `linear_cross_entropy` of the Graph. Linear in the nodes and in the chunks."""
    if all(node.op is not linear_cross_entropy for node in graph.nodes):
        return graph
    nodes: list[Node] = []
    number = graph.next_id()
    for node in graph.nodes:
        if node.op is linear_cross_entropy:
            spread = _Spread(Builder(number, node.source), *node.args)
            nodes += spread.nodes(node.outputs)
            number = spread.builder.next_id
        else:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


@dataclass(slots=True)
class _Spread:
    """Of one layer; arguments as `linear_cross_entropy` takes them."""

    builder: Builder
    hidden: Value
    matrix: Value
    bias: Value | None
    target: Value
    reduction: int
    ignore_index: int
    wanted: tuple[bool, bool, bool]
    widened: bool

    @property
    def wide(self) -> torch.dtype:
        """In which a chunk is computed between its products."""
        return compute_dtype(self.hidden.type.dtype)

    def nodes(self, outputs: tuple[Value, ...]) -> list[Node]:
        b, (rows, _) = self.builder, self.hidden.type.shape
        dtype, wide, classes = self.hidden.type.dtype, self.wide, self.matrix.type.shape[1]
        zero = b.call(aten.full.default, (), 0.0, dtype=wide, device=self.hidden.type.device)
        counted = b.call(aten.ne.Scalar, self.target, self.ignore_index)
        count = b.call(aten._to_copy.default, b.call(aten.sum.dim_IntList, counted, (0,)), dtype=wide)
        share = b.call(aten._to_copy.default, counted, dtype=wide)
        divisor = b.call(aten.clamp_min.default, count, 1) if self.reduction == MEAN else None
        unit = UNITS.get(dtype)
        if unit is not None:
            share = b.call(aten.mul.Tensor, share, unit)
        elif divisor is not None:
            share = b.call(aten.div.Tensor, share, divisor)
        share = b.call(aten.unsqueeze.default, share, 1)
        numbers, column = self._classes(counted)
        losses: list[Value] = []
        d_hidden: list[Value] = []
        d_weight = d_bias = None
        pieces = max(1, -(-rows // max(LEAST_ROWS, CHUNK_BYTES // (classes * dtype.itemsize))))
        step = -(-rows // pieces)
        for start in range(0, rows, step):
            part = [self._rows(value, start, min(start + step, rows)) for value in (self.hidden, column, share)]
            loss, gradient = self._along_rows(self._logits(part[0]), numbers, part[1], part[2], zero)
            losses.append(loss)
            if self.wanted[0]:
                d_hidden.append(self._product(gradient, b.call(aten.t.default, self.matrix)))
            if self.wanted[1]:
                d_weight = self._added(d_weight, self._product(b.call(aten.t.default, gradient), part[0]))
            if self.wanted[2]:
                d_bias = self._added(d_bias, b.call(aten.sum.dim_IntList, gradient, (0,), dtype=wide))
        loss = b.call(aten.where.self, counted, self._joined(losses), zero)
        loss = b.call(aten.sum.dim_IntList, loss, (0,), dtype=torch.float64)
        if self.reduction == MEAN:
            loss = b.call(aten.div.Tensor, loss, count)
        gradients = [self._joined(d_hidden)] if d_hidden else []
        gradients += [value for value in (d_weight, d_bias) if value is not None]
        if unit is not None:
            gradients = [self._shared(gradient, unit, divisor) for gradient in gradients]
        results = [self._cast(value, outputs[0].type.dtype) for value in (loss, count)] + gradients
        named = dict(zip(results, outputs, strict=True))
        return [
            replace(substitute(node, named), outputs=tuple([named.get(value, value) for value in node.outputs]))
            for node in b.nodes
        ]

    def _classes(self, counted: Value) -> tuple[Value, Value]:
        """The numbers of the classes, and that of each row. A library's look-up checks that targets are classes."""
        b, device, classes = self.builder, self.hidden.type.device, self.matrix.type.shape[1]
        (rows,) = self.target.type.shape
        # A kernel computes numbers where it needs them; what is looked up is in memory.
        numbers, table = (self._range(classes, dtype) for dtype in (torch.int32, torch.int64))
        none = b.call(aten.full.default, (), 0, dtype=torch.int64, device=device)
        target = b.call(aten.where.self, counted, self.target, none)
        (column,) = b.call_typed(
            aten.index_select.default, (_contiguous((rows,), torch.int64, device),), table, 0, target
        )
        narrow = b.call(aten._to_copy.default, column, dtype=torch.int32)
        return numbers, b.call(aten.unsqueeze.default, narrow, 1)

    def _range(self, size: int, dtype: torch.dtype) -> Value:
        device = self.hidden.type.device
        type_ = _contiguous((size,), dtype, device)
        return self.builder.call_typed(aten.arange.default, (type_,), size, dtype=dtype, device=device)[0]

    def _rows(self, value: Value, start: int, stop: int) -> Value:
        return self.builder.call(aten.slice.Tensor, value, 0, start, stop)

    def _logits(self, hidden: Value) -> Value:
        """In `wide`, rounded once."""
        b, type_ = self.builder, self.hidden.type
        shape = (hidden.type.shape[0], self.matrix.type.shape[1])
        product = (_contiguous(shape, type_.dtype, type_.device),)
        if self.bias is None:
            (logits,) = b.call_typed(aten.mm.default, product, hidden, self.matrix)
        else:
            (logits,) = b.call_typed(aten.addmm.default, product, self.bias, hidden, self.matrix)
        return self._cast(logits, self.wide)

    def _along_rows(
        self, logits: Value, numbers: Value, column: Value, share: Value, zero: Value
    ) -> tuple[Value, Value]:
        """The losses of the rows, and the gradient of logits, in the dtype of hidden."""
        b, dtype = self.builder, self.hidden.type.dtype
        shifted = b.call(aten.sub.Tensor, logits, b.call(aten.amax.default, logits, (1,), True))
        weights = b.call(aten.exp.default, shifted)
        total = b.call(aten.sum.dim_IntList, weights, (1,), True)
        chosen = b.call(aten.eq.Tensor, numbers, column)
        if self.wide is dtype or self.widened:
            own = b.call(aten.sum.dim_IntList, b.call(aten.where.self, chosen, shifted, zero), (1,))
            logarithm = b.call(aten.squeeze.dim, b.call(aten.log.default, total), 1)
            loss = b.call(aten.sub.Tensor, logarithm, own)
            scaled = b.call(aten.mul.Tensor, weights, b.call(aten.div.Tensor, share, total))
        else:
            exact = b.call(aten.sub.Tensor, shifted, b.call(aten.log.default, total))
            rounded = self._cast(self._cast(exact, dtype), self.wide)
            own = b.call(aten.sum.dim_IntList, b.call(aten.where.self, chosen, rounded, zero), (1,))
            loss = b.call(aten.neg.default, own)
            scaled = b.call(aten.mul.Tensor, b.call(aten.exp.default, rounded), share)
        gradient = b.call(aten.sub.Tensor, scaled, b.call(aten.where.self, chosen, share, zero))
        return loss, self._cast(gradient, dtype)

    def _product(self, left: Value, right: Value) -> Value:
        """In `wide`, not rounded to less."""
        shape = (left.type.shape[0], right.type.shape[1])
        type_ = _contiguous(shape, self.wide, left.type.device)
        op = aten.mm.default if self.wide is left.type.dtype else wide_product
        return self.builder.call_typed(op, (type_,), left, right)[0]

    def _shared(self, gradient: Value, unit: float, divisor: Value | None) -> Value:
        """What was computed for shares of `unit`, for those that rows have."""
        gradient = self.builder.call(aten.mul.Tensor, gradient, 1 / unit)
        return gradient if divisor is None else self.builder.call(aten.div.Tensor, gradient, divisor)

    def _added(self, before: Value | None, value: Value) -> Value:
        return value if before is None else self.builder.call(aten.add.Tensor, before, value)

    def _cast(self, value: Value, dtype: torch.dtype) -> Value:
        return value if value.type.dtype is dtype else self.builder.call(aten._to_copy.default, value, dtype=dtype)

    def _joined(self, parts: list[Value]) -> Value:
        if len(parts) == 1:
            return parts[0]
        first = parts[0].type
        shape = (self.hidden.type.shape[0], *first.shape[1:])
        type_ = _contiguous(shape, first.dtype, first.device)
        return self.builder.call_typed(aten.cat.default, (type_,), tuple(parts), 0)[0]


def _contiguous(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> TensorType:
    return TensorType(shape, dtype, contiguous_strides(shape), device)
