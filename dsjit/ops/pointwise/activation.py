"""Activation functions.

Formulas are those of aten/src/ATen/native/cpu/Activation.cpp and Elu.h, in their vectorised form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch

from dsjit.ir.dtypes import is_floating
from dsjit.ir.graph import Node
from dsjit.ops.binding import bind
from dsjit.ops.expression import Expr, apply, select
from dsjit.ops.pointwise.families import by_name, row
from dsjit.ops.row import OpRow

__all__ = ["ROWS", "gelu_inner"]

GELU_BETA: Final = math.sqrt(2.0) * (2.0 / math.sqrt(math.pi)) * 0.5
GELU_KAPPA: Final = 0.044715
SELU_ALPHA: Final = 1.6732632423543772848170429916717
SELU_SCALE: Final = 1.0507009873554804934193349852946
"""The fixed point of Klambauer et al., Self-Normalizing Neural Networks (2017), as torch spells it."""


def clip(x: Expr, low: float, high: float) -> Expr:
    return apply("minimum", apply("maximum", x, low), high)


def relu(x: Expr) -> Expr:
    """NaN and -0.0 pass through."""
    return x if x.dtype in (torch.uint8, torch.bool) else select(x < 0, 0, x)


def hardtanh(x: Expr, low: Expr, high: Expr) -> Expr:
    x = select(x < low, low, x)
    return select(x > high, high, x)


def hardtanh_is_signed(node: Node) -> bool:
    """ATen refuses unsigned types with a negative bound when it runs: what reaches a kernel is signed or floating."""
    return node.output.type.dtype not in (torch.uint8, torch.bool)


def leaky_relu(x: Expr, negative_slope: Expr) -> Expr:
    return select(x > 0, x, x * negative_slope)


def elu(x: Expr, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Expr:
    negative = apply("expm1", x * input_scale) * (x.const(alpha) * scale)
    return select(x >= 0, x * scale, negative)


def celu(x: Expr, alpha: float = 1) -> Expr:
    return elu(x, alpha, 1, 1 / alpha)


def selu(x: Expr) -> Expr:
    return elu(x, SELU_ALPHA, SELU_SCALE)


def gelu_inner(x: Expr) -> Expr:
    """The argument of tanh in Hendrycks and Gimpel, Gaussian Error Linear Units (2016)."""
    return apply("fma", x * x * x, GELU_KAPPA, x) * GELU_BETA


def gelu(x: Expr, approximate: str = "none") -> Expr:
    """ATen's 0.5 * (1 + tanh(u)) is written sigmoid(2 * u): the same number without its cancellation for negative x."""
    if approximate == "tanh":
        return x * apply("sigmoid", gelu_inner(x) * 2)
    return x * 0.5 * (1 + apply("erf", x * math.sqrt(0.5)))


def silu(x: Expr) -> Expr:
    return x / (1 + apply("exp", -x))


def mish(x: Expr) -> Expr:
    return x * apply("tanh", apply("log1p", apply("exp", x)))


def softplus(x: Expr, beta: float = 1, threshold: float = 20) -> Expr:
    scaled = x * beta
    return select(scaled > threshold, x, apply("log1p", apply("exp", scaled)) / beta)


def hardsigmoid(x: Expr) -> Expr:
    return clip(x + 3, 0, 6) / 6


def hardswish(x: Expr) -> Expr:
    return x * clip(x + 3, 0, 6) / 6


def hardshrink(x: Expr, lambd: Expr) -> Expr:
    return select((x >= -lambd) & (x <= lambd), 0, x)


def softshrink(x: Expr, lambd: Expr) -> Expr:
    """NaN passes through."""
    return select(x > lambd, x - lambd, select(x < -lambd, x + lambd, x * 0))


def threshold(x: Expr, limit: Expr, value: Expr) -> Expr:
    return select(x <= limit, value, x)


def prelu(x: Expr, weight: Expr) -> Expr:
    return select(x > 0, x, weight * x)


def is_floating_result(node: Node) -> bool:
    return is_floating(node.output.type.dtype)


def rrelu_in_evaluation(node: Node) -> bool:
    return not bind(node)["training"]


def rrelu(x: Expr, lower: float, upper: float, training: bool, generator: None) -> Expr:
    return leaky_relu(x, x.const((lower + upper) / 2))


ROWS: Final[Mapping[str, OpRow]] = by_name(
    [
        row("relu.default", relu, ("self",)),
        row("relu6.default", lambda x: hardtanh(x, x.const(0), x.const(6)), ("self",)),
        row("hardtanh.default", hardtanh, ("self", "min_val", "max_val"), output="first", when=hardtanh_is_signed),
        row("leaky_relu.default", leaky_relu, ("self", "negative_slope"), dtypes="result", output="first"),
        row("elu.default", elu, ("self",)),
        row("celu.default", celu, ("self",)),
        row("selu.default", selu, ("self",)),
        row("gelu.default", gelu, ("self",)),
        row("silu.default", silu, ("self",)),
        row("mish.default", mish, ("self",)),
        row("softplus.default", softplus, ("self",)),
        row("hardsigmoid.default", hardsigmoid, ("self",)),
        row("hardswish.default", hardswish, ("self",)),
        row("hardshrink.default", hardshrink, ("self", "lambd"), output="first"),
        row("softshrink.default", softshrink, ("self", "lambd"), dtypes="result", output="first"),
        row("threshold.default", threshold, ("self", "threshold", "value"), dtypes="result", output="first"),
        row("_prelu_kernel.default", prelu, ("self", "weight"), when=is_floating_result),
        row("rrelu.default", rrelu, ("self",), when=rrelu_in_evaluation),
    ]
)
