"""Exponentials, logarithms, trigonometry and the special functions built on them.

Formulas follow aten/src/ATen/native/cpu/UnaryOpsKernel.cpp and native/cpu/LogAddExp.h.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from dsjit.ops.expression import Expr, apply, select
from dsjit.ops.pointwise.families import REDUCED, by_name, row, unary
from dsjit.ops.row import OpRow

__all__ = ["ROWS"]

SAME_NAME: Final = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p",
    "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
    "sigmoid", "erf", "erfc", "lgamma",
)  # fmt: skip


def logit(x: Expr, eps: float | None = None) -> Expr:
    if eps is not None:
        x = select(x < eps, eps, select(x > 1 - eps, 1 - eps, x))
    return apply("log", x / (1 - x))


def logaddexp(x: Expr, y: Expr) -> Expr:
    same_infinity = x.equals(y) & apply("abs", x).equals(math.inf)
    larger = apply("maximum", x, y)
    return select(same_infinity, x, larger + apply("log1p", apply("exp", -apply("abs", x - y))))


def logaddexp2(x: Expr, y: Expr) -> Expr:
    same_infinity = x.equals(y) & apply("abs", x).equals(math.inf)
    larger = apply("maximum", x, y)
    correction = apply("log1p", apply("exp2", -apply("abs", x - y)))
    return select(same_infinity, x, apply("fma", correction, 1 / math.log(2), larger))


def xlogy(x: Expr, y: Expr) -> Expr:
    return select(y.differs(y), y, select(x.equals(0), 0.0, x * apply("log", y)))


def xlog1py(x: Expr, y: Expr) -> Expr:
    return select(y.differs(y), y, select(x.equals(0), 0.0, x * apply("log1p", y)))


def sinc(x: Expr) -> Expr:
    scaled = x * math.pi
    return select(x.equals(0), 1.0, apply("sin", scaled) / scaled)


def entropy(x: Expr) -> Expr:
    positive = select(x > 0, -x * apply("log", x), select(x.equals(0), 0.0, x.const(-math.inf)))
    return select(x.differs(x), x, positive)


ROWS: Final[Mapping[str, OpRow]] = by_name(
    [
        *(unary(name, name) for name in SAME_NAME),
        row("atan2.default", lambda y, x: apply("atan2", y, x), output="float"),
        row("logit.default", logit, ("self",), output="float", stepwise=REDUCED),
        row("logaddexp.default", logaddexp),
        row("logaddexp2.default", logaddexp2),
        row("xlogy.Tensor", xlogy, output="float", stepwise=REDUCED),
        row("xlogy.Scalar_Other", xlogy, output="float", stepwise=REDUCED),
        row("xlogy.Scalar_Self", xlogy, output="float", stepwise=REDUCED),
        row("special_xlog1py.default", xlog1py, output="float", stepwise=REDUCED),
        row("special_xlog1py.other_scalar", xlog1py, output="float", stepwise=REDUCED),
        row("special_xlog1py.self_scalar", xlog1py, output="float", stepwise=REDUCED),
        row("special_entr.default", entropy, ("self",), output="float", stepwise=REDUCED),
        row("sinc.default", sinc, ("self",), output="float"),
        row("deg2rad.default", lambda x: x * (math.pi / 180), ("self",), output="float"),
        row("rad2deg.default", lambda x: x * (180 / math.pi), ("self",), output="float"),
    ]
)
