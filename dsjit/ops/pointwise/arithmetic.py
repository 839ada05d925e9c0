"""Addition, multiplication, division, powers, rounding and extrema.

Formulas are those of ATen's CPU kernels (aten/src/ATen/native/cpu/{BinaryOps,PointwiseOps,Lerp,Pow,UnaryOps}Kernel.cpp
and native/ufunc/add.h), in their vectorised form where it differs from the scalar one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch

from dsjit.ir.dtypes import is_floating
from dsjit.ir.graph import Arg, Node, Value
from dsjit.ops.binding import bind
from dsjit.ops.expression import Expr, Operand, apply, select
from dsjit.ops.inference import promoted_dtype
from dsjit.ops.pointwise.families import REDUCED, by_name, integer_division_is_safe, not_reduced_precision, row
from dsjit.ops.row import OpRow

__all__ = ["ROWS"]


def add(x: Expr, y: Expr, alpha: Operand = 1) -> Expr:
    if x.dtype is torch.bool:
        return x | (y & bool(alpha))
    if alpha == 1:
        return x + y
    if is_floating(x.dtype):
        return apply("fma", y, alpha, x)
    return x + y * alpha


def sub(x: Expr, y: Expr, alpha: float | int = 1) -> Expr:
    return x - y if alpha == 1 else add(x, y, -alpha)


def mul(x: Expr, y: Expr) -> Expr:
    return x & y if x.dtype is torch.bool else x * y


def divide(x: Expr, y: Expr, rounding_mode: str | None = None) -> Expr:
    if rounding_mode is None:
        return x / y
    if not is_floating(x.dtype):
        return apply("floor_div" if rounding_mode == "floor" else "trunc_div", x, y)
    return floor_divide_floating(x, y) if rounding_mode == "floor" else apply("trunc", x / y)


def floor_divide(x: Expr, y: Expr) -> Expr:
    return divide(x, y, "floor")


def floor_divide_floating(x: Expr, y: Expr) -> Expr:
    """Python's `//`: the quotient that goes with the exact remainder, which is not always floor(x / y)."""
    remainder = apply("trunc_rem", x, y)
    quotient = (x - remainder) / y
    crosses_zero = remainder.differs(0) & ((y < 0) ^ (remainder < 0))
    quotient = select(crosses_zero, quotient - 1, quotient)
    floored = apply("floor", quotient)
    floored = select(quotient - floored > 0.5, floored + 1, floored)
    plain = x / y
    floored = select(quotient.equals(0), apply("copysign", x.const(0), plain), floored)
    return select(y.equals(0), plain, floored)


def division_dtype(bound: Mapping[str, Arg]) -> torch.dtype:
    dtype = promoted_dtype((bound["self"], bound["other"]))
    if bound["rounding_mode"] is None and not dtype.is_floating_point and not dtype.is_complex:
        return torch.get_default_dtype()
    return dtype


def rounded_division_is_exact(node: Node) -> bool:
    """ATen rounds the quotient of two bf16 or fp16 tensors before it floors; not that of a tensor and one number."""
    bound = bind(node)
    divisor = bound["other"]
    if bound.get("rounding_mode", "floor") is None or not_reduced_precision(node):
        return integer_division_is_safe(node)
    return not isinstance(divisor, Value) or divisor.type.numel == 1


def absolute(x: Expr) -> Expr:
    return x if x.dtype in (torch.bool, torch.uint8) else apply("abs", x)


def sign(x: Expr) -> Expr:
    if x.dtype is torch.bool:
        return x
    return (x > 0).cast(x.dtype) - (x < 0).cast(x.dtype)


def signbit(x: Expr) -> Expr:
    if is_floating(x.dtype):
        return apply("signbit", x)
    return x.cast(torch.int64) < 0


def maximum(x: Expr, y: Expr) -> Expr:
    return x | y if x.dtype is torch.bool else apply("maximum", x, y)


def minimum(x: Expr, y: Expr) -> Expr:
    return x & y if x.dtype is torch.bool else apply("minimum", x, y)


def fmax(x: Expr, y: Expr) -> Expr:
    return apply("fmax", x, y) if is_floating(x.dtype) else maximum(x, y)


def fmin(x: Expr, y: Expr) -> Expr:
    return apply("fmin", x, y) if is_floating(x.dtype) else minimum(x, y)


def clamp(x: Expr, low: Expr | None = None, high: Expr | None = None) -> Expr:
    """A zero that equals a bound keeps its sign. NaN gives NaN; where low > high the result is high."""
    if low is not None:
        x = select(x < low, low, x)
    return x if high is None else select(x > high, high, x)


def clamp_by_tensors(x: Expr, low: Expr | None = None, high: Expr | None = None) -> Expr:
    """NaN in any operand gives NaN; where low > high the result is high."""
    if low is not None:
        x = maximum(x, low)
    return x if high is None else minimum(x, high)


def bounds_are_numbers(node: Node) -> bool:
    """Releases of torch disagree on a Python NaN as a bound."""
    bounds = (bind(node).get(name) for name in ("min", "max"))
    return not any(isinstance(bound, float) and math.isnan(bound) for bound in bounds)


def clamp_max(x: Expr, high: Expr) -> Expr:
    return clamp(x, None, high)


def clamp_max_by_tensor(x: Expr, high: Expr) -> Expr:
    return clamp_by_tensors(x, None, high)


def lerp(start: Expr, end: Expr, weight: Expr) -> Expr:
    near_start = apply("abs", weight) < 0.5
    coefficient = select(near_start, weight, weight - 1)
    return apply("fma", coefficient, end - start, select(near_start, start, end))


def addcmul(x: Expr, a: Expr, b: Expr, value: float | int = 1) -> Expr:
    product = a * value
    return apply("fma", product, b, x) if is_floating(x.dtype) else x + product * b


def addcdiv(x: Expr, a: Expr, b: Expr, value: float | int = 1) -> Expr:
    return x + a * value / b


def heaviside(x: Expr, at_zero: Expr) -> Expr:
    if x.dtype is torch.bool:
        return x | at_zero
    return select(x.equals(0), at_zero, (x > 0).cast(x.dtype))


def integral(op: str) -> OpRow:
    """The row of a rounding to integral values: integers stay as they are."""
    return row(f"{op}.default", lambda x: apply(op, x) if is_floating(x.dtype) else x, ("self",))


def round_decimals(x: Expr, decimals: int) -> Expr:
    if not is_floating(x.dtype):
        return x
    scale = 10.0 ** abs(decimals)
    return apply("round", x * scale) / scale if decimals >= 0 else apply("round", x / scale) * scale


def frac(x: Expr) -> Expr:
    return x - apply("trunc", x)


def rsqrt(x: Expr) -> Expr:
    return 1 / apply("sqrt", x)


def power(x: Expr, exponent: float | int) -> Expr:
    """`x ** exponent` with the exponents that `pow_tensor_scalar_kernel` computes without `pow`."""
    if not is_floating(x.dtype):
        return integer_power(x, int(exponent))
    if exponent == 0:
        return x.const(1)
    if exponent == 1:
        return x
    if exponent == 0.5:
        return apply("sqrt", x)
    if exponent == 2:
        return x * x
    if exponent == 3:
        return x * x * x
    if exponent == -0.5:
        return rsqrt(x)
    if exponent == -1:
        return 1 / x
    if exponent == -2:
        return 1 / (x * x)
    return apply("pow", x, exponent)


def square(x: Expr) -> Expr:
    return x * x


def integer_power(x: Expr, exponent: int) -> Expr:
    """Square and multiply; wraps around as repeated multiplication does."""
    if x.dtype is torch.bool:
        return x if exponent else x.const(True)
    result: Expr | None = None
    square = x
    while exponent:
        if exponent & 1:
            result = square if result is None else result * square
        exponent >>= 1
        if exponent:
            square = square * square
    return x.const(1) if result is None else result


def power_is_covered(node: Node) -> bool:
    """Integer powers need an exponent that is not negative; ATen computes fp16 with `pow` whatever the exponent, and
    rounds bf16 after every step but for the exponent -0.5."""
    dtype = node.output.type.dtype
    exponent = bind(node)["exponent"]
    if dtype is torch.bfloat16:
        return bool(exponent != -0.5)
    if dtype is torch.float16:
        return exponent in (0, 1, 2, -1)
    return is_floating(dtype) or (isinstance(exponent, int) and exponent >= 0)


def power_is_floating(node: Node) -> bool:
    return is_floating(node.output.type.dtype)


def nan_to_num(x: Expr, nan: float | None, posinf: float | None, neginf: float | None) -> Expr:
    if not is_floating(x.dtype):
        return x
    largest = torch.finfo(x.dtype).max
    infinite = select(x.equals(math.inf), largest if posinf is None else posinf, x)
    infinite = select(x.equals(-math.inf), -largest if neginf is None else neginf, infinite)
    return select(x.differs(x), 0.0 if nan is None else nan, infinite)


BOUNDS: Final = ("self", "min", "max")

ROWS: Final[Mapping[str, OpRow]] = by_name(
    [
        row("add.Tensor", add, stepwise=REDUCED),
        row("add.Scalar", add, stepwise=REDUCED),
        row("sub.Tensor", sub, stepwise=REDUCED),
        row("sub.Scalar", sub, stepwise=REDUCED),
        row("rsub.Tensor", sub, ("other", "self"), stepwise=REDUCED),
        row("rsub.Scalar", sub, ("other", "self"), stepwise=REDUCED),
        row("mul.Tensor", mul, dtypes="result"),
        row("mul.Scalar", mul, dtypes="result"),
        row("div.Tensor", divide, dtypes="result", output="float"),
        row("div.Scalar", divide, dtypes="result", output="float"),
        row("div.Tensor_mode", divide, dtypes="result", output=division_dtype, when=rounded_division_is_exact),
        row("div.Scalar_mode", divide, dtypes="result", output=division_dtype, when=rounded_division_is_exact),
        row("true_divide.Tensor", divide, dtypes="result", output="float"),
        row("floor_divide.default", floor_divide, dtypes="result", when=rounded_division_is_exact),
        row("floor_divide.Scalar", floor_divide, dtypes="result", when=rounded_division_is_exact),
        row("remainder.Tensor", lambda x, y: apply("floor_rem", x, y), when=integer_division_is_safe),
        row("remainder.Scalar", lambda x, y: apply("floor_rem", x, y), when=integer_division_is_safe),
        row("remainder.Scalar_Tensor", lambda x, y: apply("floor_rem", x, y), when=integer_division_is_safe),
        row("fmod.Tensor", lambda x, y: apply("trunc_rem", x, y), when=integer_division_is_safe),
        row("fmod.Scalar", lambda x, y: apply("trunc_rem", x, y), when=integer_division_is_safe),
        row("neg.default", lambda x: -x, ("self",)),
        row("abs.default", absolute, ("self",)),
        row("sign.default", sign, ("self",)),
        row("sgn.default", sign, ("self",)),
        row("signbit.default", signbit, ("self",), dtypes="as_is", output="bool"),
        row("copysign.Tensor", lambda x, y: apply("copysign", x, y), output="float"),
        row("copysign.Scalar", lambda x, y: apply("copysign", x, y), output="float"),
        row("maximum.default", maximum),
        row("minimum.default", minimum),
        row("max.other", maximum),
        row("min.other", minimum),
        row("fmax.default", fmax),
        row("fmin.default", fmin),
        row("clamp.default", clamp, BOUNDS, when=bounds_are_numbers),
        row("clamp.Tensor", clamp_by_tensors, BOUNDS),
        row("clamp_min.default", clamp, ("self", "min"), when=bounds_are_numbers),
        row("clamp_min.Tensor", clamp_by_tensors, ("self", "min")),
        row("clamp_max.default", clamp_max, ("self", "max"), when=bounds_are_numbers),
        row("clamp_max.Tensor", clamp_max_by_tensor, ("self", "max")),
        row("lerp.Scalar", lerp, ("self", "end", "weight"), dtypes="result", output="first"),
        row("lerp.Tensor", lerp, ("self", "end", "weight")),
        row("addcmul.default", addcmul, ("self", "tensor1", "tensor2")),
        row("addcdiv.default", addcdiv, ("self", "tensor1", "tensor2")),
        row("hypot.default", lambda x, y: apply("hypot", x, y)),
        row("heaviside.default", heaviside, ("self", "values")),
        row("nextafter.default", lambda x, y: apply("nextafter", x, y), when=not_reduced_precision),
        integral("floor"),
        integral("ceil"),
        integral("trunc"),
        integral("round"),
        row("round.decimals", round_decimals, ("self",)),
        row("frac.default", frac, ("self",)),
        row("sqrt.default", lambda x: apply("sqrt", x), ("self",), output="float"),
        row("rsqrt.default", rsqrt, ("self",), output="float"),
        row("reciprocal.default", lambda x: 1 / x, ("self",), output="float"),
        row("square.default", square, ("self",), output=lambda bound: promoted_dtype((bound["self"], 2))),
        row(
            "pow.Tensor_Scalar",
            power,
            ("self",),
            output=lambda bound: promoted_dtype((bound["self"], bound["exponent"])),
            stepwise=(torch.bfloat16,),
            when=power_is_covered,
        ),
        row("pow.Scalar", lambda x, y: apply("pow", x, y), ("self", "exponent"), when=power_is_floating),
        row("pow.Tensor_Tensor", lambda x, y: apply("pow", x, y), ("self", "exponent"), when=power_is_floating),
        row("nan_to_num.default", nan_to_num, ("self",), when=not_reduced_precision),
    ]
)
