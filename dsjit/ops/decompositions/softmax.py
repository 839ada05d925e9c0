"""Softmax and its logarithm, shifted by the maximum so that nothing overflows, and their derivatives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch

from dsjit.ir.graph import Value
from dsjit.ops.decompositions.precision import Outputs, Rewritten, cast, rewrites, widen
from dsjit.ops.row import GraphBuilder, OpRow

__all__ = ["ROWS"]

aten = torch.ops.aten


def _softmax_of(b: GraphBuilder, x: Value, dim: int) -> Value:
    shifted = b.call(aten.sub.Tensor, x, b.call(aten.amax.default, x, (dim,), True))
    exponential = b.call(aten.exp.default, shifted)
    total = b.call(aten.sum.dim_IntList, exponential, (dim,), True)
    return b.call(aten.mul.Tensor, exponential, b.call(aten.reciprocal.default, total))


def _log_softmax_of(b: GraphBuilder, x: Value, dim: int) -> Value:
    shifted = b.call(aten.sub.Tensor, x, b.call(aten.amax.default, x, (dim,), True))
    total = b.call(aten.sum.dim_IntList, b.call(aten.exp.default, shifted), (dim,), True)
    return b.call(aten.sub.Tensor, shifted, b.call(aten.log.default, total))


def softmax(b: GraphBuilder, outputs: Outputs, *, self: Value, dim: int, half_to_float: bool) -> Rewritten:
    if self.type.numel == 0 or half_to_float:
        return None
    return (cast(b, _softmax_of(b, widen(b, self), dim), outputs[0].dtype),)


def log_softmax(b: GraphBuilder, outputs: Outputs, *, self: Value, dim: int, half_to_float: bool) -> Rewritten:
    if self.type.numel == 0 or half_to_float:
        return None
    return (cast(b, _log_softmax_of(b, widen(b, self), dim), outputs[0].dtype),)


def softmax_int(b: GraphBuilder, outputs: Outputs, *, self: Value, dim: int, dtype: torch.dtype | None) -> Rewritten:
    return softmax(b, outputs, self=cast(b, self, outputs[0].dtype), dim=dim, half_to_float=False)


def log_softmax_int(
    b: GraphBuilder, outputs: Outputs, *, self: Value, dim: int, dtype: torch.dtype | None
) -> Rewritten:
    return log_softmax(b, outputs, self=cast(b, self, outputs[0].dtype), dim=dim, half_to_float=False)


def safe_softmax(b: GraphBuilder, outputs: Outputs, *, self: Value, dim: int, dtype: torch.dtype | None) -> Rewritten:
    """Softmax whose rows of nothing but -inf are 0 instead of NaN."""
    result = softmax_int(b, outputs, self=self, dim=dim, dtype=dtype)
    if result is None:
        return None
    masked = b.call(aten.all.dim, b.call(aten.eq.Scalar, self, -math.inf), dim, True)
    return (b.call(aten.where.ScalarSelf, masked, 0.0, result[0]),)


def softmax_backward(
    b: GraphBuilder, outputs: Outputs, *, grad_output: Value, output: Value, dim: int, input_dtype: torch.dtype
) -> Rewritten:
    if output.type.numel == 0 or not grad_output.type.dtype == output.type.dtype == input_dtype:
        return None
    grad, y = widen(b, grad_output), widen(b, output)
    total = b.call(aten.sum.dim_IntList, b.call(aten.mul.Tensor, grad, y), (dim,), True)
    return (cast(b, b.call(aten.mul.Tensor, b.call(aten.sub.Tensor, grad, total), y), outputs[0].dtype),)


def log_softmax_backward(
    b: GraphBuilder, outputs: Outputs, *, grad_output: Value, output: Value, dim: int, input_dtype: torch.dtype
) -> Rewritten:
    if output.type.numel == 0 or not grad_output.type.dtype == output.type.dtype == input_dtype:
        return None
    grad, y = widen(b, grad_output), widen(b, output)
    total = b.call(aten.sum.dim_IntList, grad, (dim,), True)
    product = b.call(aten.mul.Tensor, b.call(aten.exp.default, y), total)
    return (cast(b, b.call(aten.sub.Tensor, grad, product), outputs[0].dtype),)


ROWS: Final[Mapping[str, OpRow]] = rewrites(
    {
        "_softmax.default": softmax,
        "_log_softmax.default": log_softmax,
        "softmax.int": softmax_int,
        "log_softmax.int": log_softmax_int,
        "_safe_softmax.default": safe_softmax,
        "_softmax_backward_data.default": softmax_backward,
        "_log_softmax_backward_data.default": log_softmax_backward,
    }
)
