"""The scalar ops that a Kernel's `Apply` may name: one row each.

The table says what exists and which dtypes it takes. What an op computes is defined by the Kernel interpreter
(`codegen.interpreter`); each emitter has a spelling for every row, and a completeness test says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch

from dsjit.ir.dtypes import is_integral

__all__ = ["SCALAR_OPS", "Domain", "ScalarOp", "accepts"]

Domain: TypeAlias = Literal["float", "integer", "number", "bits", "bool", "any"]
"""float: f32, f64. integer: i8..i64, u8. number: float or integer. bits: integer or bool. any: all of these."""


@dataclass(frozen=True, slots=True)
class ScalarOp:
    """One scalar operation.

    domain: the dtypes of its operands (for `select`, of its last two; its first is bool).
    result: "same" as the operands, or "bool".
    meaning: one line, in terms of IEEE 754, C, or torch.
    """

    name: str
    arity: int
    domain: Domain
    result: Literal["same", "bool"]
    meaning: str


def _rows() -> list[ScalarOp]:
    def row(name: str, arity: int, domain: Domain, meaning: str, result: Literal["same", "bool"] = "same") -> ScalarOp:
        return ScalarOp(name, arity, domain, result, meaning)

    return [
        # Arithmetic. Integers wrap around (two's complement).
        row("add", 2, "number", "a + b"),
        row("sub", 2, "number", "a - b"),
        row("mul", 2, "number", "a * b"),
        row("div", 2, "float", "a / b, IEEE"),
        row("neg", 1, "number", "-a"),
        row("abs", 1, "number", "|a|; the most negative integer stays itself"),
        row("fma", 3, "float", "a * b + c rounded once"),
        row("sqrt", 1, "float", "square root, correctly rounded; NaN below 0"),
        row("trunc_div", 2, "integer", "a / b towards zero; b == 0 and overflow give some number, never a trap"),
        row("floor_div", 2, "integer", "a / b towards minus infinity; b == 0 and overflow as trunc_div"),
        row("trunc_rem", 2, "number", "C's % and fmod: the sign of a"),
        row("floor_rem", 2, "number", "Python's %: the sign of b (torch.remainder)"),
        row("maximum", 2, "number", "the larger; NaN when either is NaN"),
        row("minimum", 2, "number", "the smaller; NaN when either is NaN"),
        row("fmax", 2, "float", "the larger; a NaN operand is ignored"),
        row("fmin", 2, "float", "the smaller; a NaN operand is ignored"),
        row("copysign", 2, "float", "magnitude of a, sign of b"),
        # Rounding to an integral value of the same float dtype.
        row("floor", 1, "float", "towards minus infinity"),
        row("ceil", 1, "float", "towards plus infinity"),
        row("trunc", 1, "float", "towards zero"),
        row("round", 1, "float", "to nearest, ties to even"),
        # Comparison and selection. Comparisons with a NaN are false, `ne` true.
        row("eq", 2, "any", "a == b", "bool"),
        row("ne", 2, "any", "a != b", "bool"),
        row("lt", 2, "any", "a < b", "bool"),
        row("le", 2, "any", "a <= b", "bool"),
        row("gt", 2, "any", "a > b", "bool"),
        row("ge", 2, "any", "a >= b", "bool"),
        row("select", 3, "any", "b if a else c; a is bool"),
        row("signbit", 1, "float", "the sign bit, of -0.0 and NaN too", "bool"),
        # Bits.
        row("and", 2, "bits", "bitwise and"),
        row("or", 2, "bits", "bitwise or"),
        row("xor", 2, "bits", "bitwise exclusive or"),
        row("not", 1, "bits", "bitwise complement; logical for bool"),
        row("shl", 2, "integer", "a << b as ATen has it: 0 when b < 0 or b >= width"),
        row("shr", 2, "integer", "a >> b arithmetic as ATen has it: b < 0 or b >= width counts as width - 1"),
        # Transcendentals.
        row("exp", 1, "float", "e ** a"),
        row("exp2", 1, "float", "2 ** a"),
        row("expm1", 1, "float", "e ** a - 1"),
        row("log", 1, "float", "natural logarithm; NaN below 0, -inf at 0"),
        row("log2", 1, "float", "base-2 logarithm"),
        row("log10", 1, "float", "base-10 logarithm"),
        row("log1p", 1, "float", "log(1 + a)"),
        row("sin", 1, "float", "sine, radians"),
        row("cos", 1, "float", "cosine, radians"),
        row("tan", 1, "float", "tangent, radians"),
        row("asin", 1, "float", "arc sine"),
        row("acos", 1, "float", "arc cosine"),
        row("atan", 1, "float", "arc tangent"),
        row("atan2", 2, "float", "angle of the point (b, a)"),
        row("sinh", 1, "float", "hyperbolic sine"),
        row("cosh", 1, "float", "hyperbolic cosine"),
        row("tanh", 1, "float", "hyperbolic tangent"),
        row("asinh", 1, "float", "inverse hyperbolic sine"),
        row("acosh", 1, "float", "inverse hyperbolic cosine"),
        row("atanh", 1, "float", "inverse hyperbolic tangent"),
        row("sigmoid", 1, "float", "1 / (1 + exp(-a))"),
        row("erf", 1, "float", "error function"),
        row("erfc", 1, "float", "complementary error function"),
        row("lgamma", 1, "float", "log of the absolute value of the gamma function"),
        row("pow", 2, "float", "a ** b, C's pow"),
        row("hypot", 2, "float", "sqrt(a*a + b*b) without undue overflow"),
        row("nextafter", 2, "float", "the next float from a towards b"),
    ]


SCALAR_OPS: Final[dict[str, ScalarOp]] = {row.name: row for row in _rows()}


def accepts(domain: Domain, dtype: torch.dtype) -> bool:
    """Whether an operand of `dtype` belongs to `domain`."""
    is_float = dtype is torch.float32 or dtype is torch.float64
    is_int = is_integral(dtype)
    is_bool = dtype is torch.bool
    return {
        "float": is_float,
        "integer": is_int,
        "number": is_float or is_int,
        "bits": is_int or is_bool,
        "bool": is_bool,
        "any": is_float or is_int or is_bool,
    }[domain]
