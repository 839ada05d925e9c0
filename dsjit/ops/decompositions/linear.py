"""Matrix products with something added: the product stays a library call, the rest becomes pointwise and can fuse.

Only for fp32 and fp64: `addmm` in bf16 rounds once, where `mm` then `add` would round twice, and integer `addmm` takes
`alpha` and `beta` as integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from dsjit.ir.graph import TensorType, Value, contiguous_strides
from dsjit.ops.decompositions.precision import Outputs, Rewritten, rewrites
from dsjit.ops.row import GraphBuilder, OpRow
from dsjit.ops.views import view_strides

__all__ = ["ROWS"]

aten = torch.ops.aten


def _is_wide(output: TensorType) -> bool:
    return output.dtype is torch.float32 or output.dtype is torch.float64


def _product(b: GraphBuilder, op: torch._ops.OpOverload, shape: tuple[int, ...], left: Value, right: Value) -> Value:
    type_ = TensorType(shape, left.type.dtype, contiguous_strides(shape), left.type.device)
    (value,) = b.call_typed(op, (type_,), left, right)
    return value


def _sum(b: GraphBuilder, product: Value, addend: Value, beta: float | int, alpha: float | int) -> Value:
    """alpha * product + beta * addend; with beta 0 the addend counts for nothing, NaN included."""
    if alpha != 1:
        product = b.call(aten.mul.Tensor, product, alpha)
    if beta == 0:
        return product
    if beta != 1:
        addend = b.call(aten.mul.Tensor, addend, beta)
    return b.call(aten.add.Tensor, product, addend)


def addmm(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    self: Value,
    mat1: Value,
    mat2: Value,
    beta: float | int,
    alpha: float | int,
) -> Rewritten:
    if not _is_wide(outputs[0]):
        return None
    return (_sum(b, _product(b, aten.mm.default, outputs[0].shape, mat1, mat2), self, beta, alpha),)


def addmv(
    b: GraphBuilder, outputs: Outputs, *, self: Value, mat: Value, vec: Value, beta: float | int, alpha: float | int
) -> Rewritten:
    if not _is_wide(outputs[0]):
        return None
    return (_sum(b, _product(b, aten.mv.default, outputs[0].shape, mat, vec), self, beta, alpha),)


def baddbmm(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    self: Value,
    batch1: Value,
    batch2: Value,
    beta: float | int,
    alpha: float | int,
) -> Rewritten:
    if not _is_wide(outputs[0]):
        return None
    return (_sum(b, _product(b, aten.bmm.default, outputs[0].shape, batch1, batch2), self, beta, alpha),)


def linear(b: GraphBuilder, outputs: Outputs, *, input: Value, weight: Value, bias: Value | None) -> Rewritten:
    """x @ weight.T + bias over the last dimension; the leading ones are folded into rows."""
    if len(weight.type.shape) != 2 or (bias is not None and not _is_wide(outputs[0])):
        return None
    features_out, features_in = weight.type.shape
    rows = 1
    for size in input.type.shape[:-1]:
        rows *= size
    if view_strides(input.type, (rows, features_in)) is None:
        return None
    matrix = b.call(aten.view.default, input, (rows, features_in))
    product = _product(b, aten.mm.default, (rows, features_out), matrix, b.call(aten.t.default, weight))
    result = b.call(aten.view.default, product, outputs[0].shape)
    return (result if bias is None else b.call(aten.add.Tensor, result, bias),)


ROWS: Final[Mapping[str, OpRow]] = rewrites(
    {
        "addmm.default": addmm,
        "addmv.default": addmv,
        "baddbmm.default": baddbmm,
        "linear.default": linear,
    }
)
