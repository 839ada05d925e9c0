"""Loss functions, each an elementwise part followed by a reduction.

Left to the library: `binary_cross_entropy`, which raises on inputs outside [0, 1], and forwards that gather.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from dsjit.ir.dtypes import compute_dtype
from dsjit.ir.graph import TensorType, Value
from dsjit.ops.decompositions.precision import Outputs, Rewritten, cast, rewrites, widen
from dsjit.ops.decompositions.statistics import mean
from dsjit.ops.row import GraphBuilder, OpRow

__all__ = ["ROWS"]

aten = torch.ops.aten

MEAN: Final = 1
SUM: Final = 2
"""`at::Reduction` in ATen/core/Reduction.h; 0 is none."""


def _reduced(b: GraphBuilder, outputs: Outputs, loss: Value, reduction: int) -> Rewritten:
    if reduction == MEAN:
        return mean(b, outputs, self=loss)
    return (b.call(aten.sum.default, loss),) if reduction == SUM else (loss,)


def elementwise_loss(
    function: Callable[..., Value], exact_in: Callable[[torch.dtype], bool]
) -> Callable[..., Rewritten]:
    """The rewrite of a loss that is `function(b, self, target, **parameters)` in the compute dtype, rounded, reduced.

    exact_in: for which dtypes ATen, too, computes the elementwise part without rounding in its middle.
    """

    def rewrite(
        b: GraphBuilder, outputs: Outputs, *, self: Value, target: Value, reduction: int, **parameters: Any
    ) -> Rewritten:
        dtype = outputs[0].dtype
        if not exact_in(dtype):
            return None
        loss = function(b, widen(b, self), widen(b, target), **parameters)
        return _reduced(b, outputs, cast(b, loss, dtype), reduction)

    return rewrite


def _squared_error(b: GraphBuilder, x: Value, target: Value) -> Value:
    difference = b.call(aten.sub.Tensor, x, target)
    return b.call(aten.mul.Tensor, difference, difference)


def _half_square(b: GraphBuilder, distance: Value) -> Value:
    return b.call(aten.mul.Tensor, b.call(aten.mul.Tensor, distance, 0.5), distance)


def _smooth_l1(b: GraphBuilder, x: Value, target: Value, beta: float) -> Value:
    distance = b.call(aten.abs.default, b.call(aten.sub.Tensor, x, target))
    near = b.call(aten.div.Tensor, _half_square(b, distance), beta)
    far = b.call(aten.sub.Tensor, distance, 0.5 * beta)
    return b.call(aten.where.self, b.call(aten.ge.Scalar, distance, beta), far, near)


def _huber(b: GraphBuilder, x: Value, target: Value, delta: float) -> Value:
    distance = b.call(aten.abs.default, b.call(aten.sub.Tensor, x, target))
    near = _half_square(b, distance)
    far = b.call(aten.mul.Tensor, b.call(aten.sub.Tensor, distance, 0.5 * delta), delta)
    return b.call(aten.where.self, b.call(aten.ge.Scalar, distance, delta), far, near)


def soft_margin_loss(b: GraphBuilder, outputs: Outputs, *, self: Value, target: Value, reduction: int) -> Rewritten:
    margin = b.call(aten.mul.Tensor, b.call(aten.neg.default, self), target)
    return _reduced(b, outputs, b.call(aten.log1p.default, b.call(aten.exp.default, margin)), reduction)


def log_sigmoid_forward(b: GraphBuilder, outputs: Outputs, *, self: Value) -> Rewritten:
    """(log sigmoid, exp(-|x|)), both without overflow."""
    x = widen(b, self)
    buffer = b.call(aten.exp.default, b.call(aten.neg.default, b.call(aten.abs.default, x)))
    smaller = b.call(aten.clamp_max.default, x, 0)
    result = b.call(aten.sub.Tensor, smaller, b.call(aten.log1p.default, buffer))
    if outputs[1].shape != outputs[0].shape:
        return None
    return cast(b, result, outputs[0].dtype), cast(b, buffer, outputs[1].dtype)


def binary_cross_entropy_with_logits(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    self: Value,
    target: Value,
    weight: Value | None,
    pos_weight: Value | None,
    reduction: int,
) -> Rewritten:
    """(1 - target) * x - log_weight * log_sigmoid(x), each step rounded to the input's dtype."""
    parts = log_sigmoid_forward(b, (self.type, self.type), self=self)
    if parts is None:
        return None
    log_sigmoid = parts[0]
    if pos_weight is not None:
        extra = b.call(aten.mul.Tensor, b.call(aten.sub.Tensor, pos_weight, 1), target)
        log_sigmoid = b.call(aten.mul.Tensor, log_sigmoid, b.call(aten.add.Tensor, extra, 1))
    negative = b.call(aten.mul.Tensor, b.call(aten.rsub.Scalar, target, 1), self)
    loss = b.call(aten.sub.Tensor, negative, log_sigmoid)
    if weight is not None:
        loss = b.call(aten.mul.Tensor, loss, weight)
    return _reduced(b, outputs, loss, reduction)


def nll_loss_backward(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    grad_output: Value,
    self: Value,
    target: Value,
    weight: Value | None,
    reduction: int,
    ignore_index: int,
    total_weight: Value,
) -> Rewritten:
    """Zeros but in the class of each row, as a comparison with the classes' numbers: no table to fill and read again.

    The forward has checked that targets are classes.
    """
    shape, dtype = self.type.shape, self.type.dtype
    if weight is not None or len(shape) != 2 or self.type.numel == 0 or compute_dtype(dtype) is not dtype:
        return None
    rows, classes = shape
    if classes > torch.iinfo(torch.int32).max:
        return None
    each = b.call(aten.div.Tensor, grad_output, total_weight) if reduction == MEAN else grad_output
    each = b.call(aten.neg.default, each)
    ignored = b.call(aten.eq.Scalar, target, ignore_index)
    device = self.type.device
    zero = b.call(aten.full.default, (), 0.0, dtype=dtype, device=device)
    each = b.call(aten.where.self, ignored, zero, each)
    type_ = TensorType((1, classes), torch.int32, (classes, 1), device)
    numbers = TensorType((classes,), torch.int32, (1,), device)
    (number,) = b.call_typed(aten.arange.default, (numbers,), classes, dtype=torch.int32, device=device)
    (number,) = b.call_typed(aten.view.default, (type_,), number, (1, classes))
    chosen = b.call(aten.eq.Tensor, number, b.call(aten.view.default, cast(b, target, torch.int32), (rows, 1)))
    return (b.call(aten.where.self, chosen, b.call(aten.view.default, each, (rows, 1)), zero),)


def _any_dtype(dtype: torch.dtype) -> bool:
    return True


def _all_but_fp16(dtype: torch.dtype) -> bool:
    return dtype is not torch.float16


def _wide(dtype: torch.dtype) -> bool:
    return compute_dtype(dtype) is dtype


ROWS: Final[Mapping[str, OpRow]] = rewrites(
    {
        "mse_loss.default": elementwise_loss(_squared_error, _any_dtype),
        "smooth_l1_loss.default": elementwise_loss(_smooth_l1, _all_but_fp16),
        "huber_loss.default": elementwise_loss(_huber, _wide),
        "soft_margin_loss.default": soft_margin_loss,
        "nll_loss_backward.default": nll_loss_backward,
        "log_sigmoid_forward.default": log_sigmoid_forward,
        "binary_cross_entropy_with_logits.default": binary_cross_entropy_with_logits,
    }
)
