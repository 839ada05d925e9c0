"""Derivatives of activation functions.

Formulas are those of aten/src/ATen/native/cpu/{Activation,BinaryOpsKernel}.cpp.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from dsjit.ir.dtypes import is_floating
from dsjit.ir.graph import Node
from dsjit.ops.binding import bind
from dsjit.ops.expression import Expr, apply, select
from dsjit.ops.pointwise.activation import GELU_BETA, GELU_KAPPA, gelu_inner
from dsjit.ops.pointwise.families import by_name, row
from dsjit.ops.row import OpRow

__all__ = ["ROWS"]

GAUSSIAN: Final = (2.0 / math.sqrt(math.pi)) * math.sqrt(0.5) * 0.5
"""1 / sqrt(2 pi)."""

ONE_SIXTH: Final = struct.unpack("f", struct.pack("f", 1 / 6))[0]
"""1/6 in fp32: what ATen multiplies by, in fp64 too."""


def gradient(name: str, function: Callable[..., Expr], tensors: tuple[str, ...], **options: Any) -> OpRow:
    """The row of a derivative; ATen's kernels for these do not promote, so all operands have the result's dtype."""
    return row(f"{name}.default", function, tensors, when=has_one_dtype, **options)


def has_one_dtype(node: Node) -> bool:
    """Whether all operands have the result's dtype, and that is floating."""
    dtype = node.output.type.dtype
    return is_floating(dtype) and all(value.type.dtype is dtype for value in node.inputs())


def grad_is_wide(node: Node) -> bool:
    dtype = bind(node)["grad_output"].type.dtype
    return dtype is node.output.type.dtype and dtype in (torch.float32, torch.float64)


def sigmoid_backward(grad: Expr, y: Expr) -> Expr:
    return grad * (1 - y) * y


def one_minus_square(x: Expr) -> Expr:
    return apply("fma", -x, x, x.const(1))


def tanh_backward(grad: Expr, y: Expr) -> Expr:
    return grad * one_minus_square(y)


def threshold_backward(grad: Expr, x: Expr, limit: Expr) -> Expr:
    return select(x <= limit, 0, grad)


def gelu_backward(grad: Expr, x: Expr, approximate: str = "none") -> Expr:
    if approximate == "tanh":
        inner = apply("tanh", gelu_inner(x))
        left = x * 0.5
        inner_slope = apply("fma", x * x, 3 * GELU_KAPPA, x.const(1)) * GELU_BETA
        return grad * ((1 + inner) * 0.5 + left * one_minus_square(inner) * inner_slope)
    cdf = (1 + apply("erf", x * math.sqrt(0.5))) * 0.5
    pdf = apply("exp", x * x * -0.5) * GAUSSIAN
    return grad * apply("fma", x, pdf, cdf)


def silu_backward(grad: Expr, x: Expr) -> Expr:
    gate = apply("sigmoid", x)
    return grad * gate * apply("fma", x, 1 - gate, x.const(1))


def mish_backward(grad: Expr, x: Expr) -> Expr:
    squashed = apply("tanh", apply("log1p", apply("exp", x)))
    return grad * apply("fma", x * apply("sigmoid", x), one_minus_square(squashed), squashed)


def leaky_relu_backward(grad: Expr, x: Expr, negative_slope: Expr, self_is_result: bool) -> Expr:
    return select(x > 0, grad, grad * negative_slope)


def hardtanh_backward(grad: Expr, x: Expr, min_val: float, max_val: float) -> Expr:
    return select((x > min_val) & (x < max_val), grad, 0)


def hardsigmoid_backward(grad: Expr, x: Expr) -> Expr:
    return select((x > -3) & (x < 3), grad * ONE_SIXTH, 0)


def hardswish_backward(grad: Expr, x: Expr) -> Expr:
    return select(x <= -3, 0, select(x >= 3, grad, grad * (x / 3 + 0.5)))


def shrink_backward(grad: Expr, x: Expr, lambd: Expr) -> Expr:
    return select((x < -lambd) | (x > lambd), grad, 0)


def softplus_backward(grad: Expr, x: Expr, beta: float, threshold: float) -> Expr:
    scaled = x * beta
    z = apply("exp", scaled)
    return select(scaled > threshold, grad, grad * z / (z + 1))


def elu_backward(grad: Expr, y: Expr, alpha: float, scale: float, input_scale: float, is_result: bool) -> Expr:
    coefficient = y.const(alpha) * scale
    if is_result:
        negative = grad * input_scale * (y + coefficient)
    else:
        negative = grad * input_scale * coefficient * apply("exp", y * input_scale)
    return select(y > 0, grad * scale, negative)


def log_sigmoid_backward(grad: Expr, x: Expr, buffer: Expr) -> Expr:
    slope = select(x < 0, 1, x.const(0))
    direction = select(x < 0, 1, x.const(-1))
    return grad * (slope - direction * (buffer / (1 + buffer)))


def dropout_backward(grad: Expr, mask: Expr, scale: float) -> Expr:
    return grad * mask.cast(grad.dtype) * scale


GRAD_AND_SELF: Final = ("grad_output", "self")
GRAD_AND_OUTPUT: Final = ("grad_output", "output")

ROWS: Final[Mapping[str, OpRow]] = by_name(
    [
        gradient("sigmoid_backward", sigmoid_backward, GRAD_AND_OUTPUT, stepwise=(torch.float16,)),
        gradient("tanh_backward", tanh_backward, GRAD_AND_OUTPUT),
        gradient("threshold_backward", threshold_backward, (*GRAD_AND_SELF, "threshold"), output="first"),
        gradient("gelu_backward", gelu_backward, GRAD_AND_SELF),
        gradient("silu_backward", silu_backward, GRAD_AND_SELF),
        gradient("mish_backward", mish_backward, GRAD_AND_SELF),
        gradient(
            "leaky_relu_backward",
            leaky_relu_backward,
            (*GRAD_AND_SELF, "negative_slope"),
            dtypes="result",
            output="first",
        ),
        gradient("hardtanh_backward", hardtanh_backward, GRAD_AND_SELF),
        gradient("hardsigmoid_backward", hardsigmoid_backward, GRAD_AND_SELF),
        gradient("hardswish_backward", hardswish_backward, GRAD_AND_SELF),
        gradient("hardshrink_backward", shrink_backward, ("grad_out", "self", "lambd"), output="first"),
        gradient("softshrink_backward", shrink_backward, (*GRAD_AND_SELF, "lambd"), output="first"),
        gradient("softplus_backward", softplus_backward, GRAD_AND_SELF),
        gradient("elu_backward", elu_backward, ("grad_output", "self_or_result")),
        gradient("log_sigmoid_backward", log_sigmoid_backward, (*GRAD_AND_SELF, "buffer")),
        row(
            "native_dropout_backward.default",
            dropout_backward,
            ("grad_output", "mask"),
            conditions=("mask",),
            when=grad_is_wide,
        ),
    ]
)
