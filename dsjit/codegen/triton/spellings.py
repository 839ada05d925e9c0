"""A spelling in Triton for each row of `ir.scalar`.

Transcendental functions are libdevice's, which are CUDA's own `expf` and the like, and so what eager calls. Triton's
`tl.exp` and `/` are faster and less exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch

from dsjit.ir.dtypes import is_floating

__all__ = ["HELPERS", "LIBDEVICE", "SPELLINGS", "Spelling", "Use", "helpers_of"]

Use: TypeAlias = Callable[[str], str]
"""Says that a helper is called; returns its name."""

Spelling: TypeAlias = Callable[[torch.dtype, Sequence[str], Use], str]
"""From the operands' dtype (of `select`: of its last two) and their names to an expression."""

LIBDEVICE: Final[dict[str, str]] = {
    **{
        name: name
        for name in (
            "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan",
            "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "lgamma", "pow", "hypot",
            "nextafter", "copysign", "trunc", "fma",
        )
    },
    "round": "nearbyint",
}  # fmt: skip
"""The ops that are one function of libdevice, and its name there. For AMD, Triton maps them to OCML."""


@dataclass(frozen=True, slots=True)
class Helper:
    """A function that kernels call. uses: the helpers that it calls."""

    text: str
    uses: tuple[str, ...] = ()


HELPERS: Final[dict[str, Helper]] = {
    "maximum": Helper("""\
@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
"""),
    "minimum": Helper("""\
@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
"""),
    "from_float8_e4m3fn": Helper("""\
@triton.jit
def from_float8_e4m3fn(bits):
    code = bits & 0x7F
    small = (code.to(tl.float32) * 0.001953125).to(tl.int32, bitcast=True)
    number = tl.where(code < 8, small, (code << 20) + 0x3C000000)
    number = tl.where(code == 0x7F, 0x7FF00000, number) | ((bits & 0x80) << 24)
    return number.to(tl.float32, bitcast=True)
"""),
    "from_float8_e5m2": Helper("""\
@triton.jit
def from_float8_e5m2(bits):
    code = bits & 0x7F
    small = (code.to(tl.float32) * 1.52587890625e-05).to(tl.int32, bitcast=True)
    number = tl.where(code < 4, small, (code << 21) + 0x38000000)
    number = tl.where(code >= 0x7C, (code << 21) | 0x7F800000, number) | ((bits & 0x80) << 24)
    return number.to(tl.float32, bitcast=True)
"""),
    "to_float8_e4m3fn": Helper("""\
@triton.jit
def to_float8_e4m3fn(x, beyond: tl.constexpr):
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    code = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - 960
    # The last bit of 2**14 is worth the step between the smallest numbers.
    small = (size.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(size < 0x3C800000, small, code)
    code = tl.where(size > 0x43E80000, beyond, code)
    return tl.where(size > 0x7F800000, 0x7F, code) | ((bits >> 24) & 0x80)
"""),
    "to_float8_e5m2": Helper("""\
@triton.jit
def to_float8_e5m2(x, beyond: tl.constexpr):
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    code = ((size + 0xFFFFF + ((size >> 21) & 1)) >> 21) - 448
    small = (size.to(tl.float32, bitcast=True) + 128.0).to(tl.int32, bitcast=True) - 0x43000000
    code = tl.where(size < 0x38800000, small, code)
    code = tl.where(size >= 0x47700000, beyond, code)
    return tl.where(size > 0x7F800000, 0x7F, code) | ((bits >> 24) & 0x80)
"""),
    "total": Helper("""\
@triton.jit
def total(a, b):
    return a + b
"""),
    "product": Helper("""\
@triton.jit
def product(a, b):
    return a * b
"""),
    "first_largest": Helper("""\
@triton.jit
def first_largest(a, i, b, j):
    takes_a = (a > b) | ((a != a) & (b == b)) | (((a == b) | ((a != a) & (b != b))) & (i < j))
    return tl.where(takes_a, a, b), tl.where(takes_a, i, j)
"""),
    "first_smallest": Helper("""\
@triton.jit
def first_smallest(a, i, b, j):
    takes_a = (a < b) | ((a != a) & (b == b)) | (((a == b) | ((a != a) & (b != b))) & (i < j))
    return tl.where(takes_a, a, b), tl.where(takes_a, i, j)
"""),
    "found_at": Helper("""\
@triton.jit
def found_at(best, nowhere: tl.constexpr):
    # Among no elements: 0.
    place = best[1].to(tl.int64)
    return tl.where(place == nowhere, 0, place)
"""),
    "trunc_div": Helper("""\
@triton.jit
def trunc_div(a, b):
    # Neither by 0 nor the least number by -1: both are undefined.
    by_minus_one = b == -1
    return tl.where(by_minus_one, 0 - a, a // tl.where(by_minus_one | (b == 0), 1, b))
"""),
    "unsigned_div": Helper("""\
@triton.jit
def unsigned_div(a, b):
    return a // tl.where(b == 0, 1, b)
"""),
    "floor_div": Helper(
        """\
@triton.jit
def floor_div(a, b):
    quotient = trunc_div(a, b)
    remainder = a - quotient * b
    return tl.where((remainder != 0) & ((remainder ^ b) < 0), quotient - 1, quotient)
""",
        ("trunc_div",),
    ),
    "trunc_rem": Helper(
        """\
@triton.jit
def trunc_rem(a, b):
    return a - trunc_div(a, b) * b
""",
        ("trunc_div",),
    ),
    "unsigned_rem": Helper(
        """\
@triton.jit
def unsigned_rem(a, b):
    return a - unsigned_div(a, b) * b
""",
        ("unsigned_div",),
    ),
    "floor_rem": Helper(
        """\
@triton.jit
def floor_rem(a, b):
    remainder = trunc_rem(a, b)
    return tl.where((remainder != 0) & ((remainder ^ b) < 0), remainder + b, remainder)
""",
        ("trunc_rem",),
    ),
    "floor_mod": Helper("""\
@triton.jit
def floor_mod(a, b):
    remainder = libdevice.fmod(a, b)
    return tl.where((remainder != 0.0) & ((remainder < 0.0) != (b < 0.0)), remainder + b, remainder)
"""),
    "shift_left": Helper("""\
@triton.jit
def shift_left(a, b, width: tl.constexpr):
    legal = (b >= 0) & (b < width)
    return tl.where(legal, a << tl.where(legal, b, 0), 0)
"""),
    "shift_right": Helper("""\
@triton.jit
def shift_right(a, b, width: tl.constexpr):
    return a >> tl.where((b >= 0) & (b < width), b, width - 1)
"""),
    "unsigned_shift_right": Helper("""\
@triton.jit
def unsigned_shift_right(a, b, width: tl.constexpr):
    return tl.where(b < width, a >> tl.where(b < width, b, 0), 0)
"""),
}
"""By name. Only those that a kernel calls are printed above it."""


def helpers_of(names: Iterable[str]) -> list[str]:
    """The names of these helpers and of those that they call, each after those that it calls."""
    found: dict[str, None] = {}
    for name in names:
        for used in helpers_of(HELPERS[name].uses):
            found.setdefault(used)
        found.setdefault(name)
    return list(found)


def _libdevice(name: str) -> Spelling:
    return lambda dtype, args, use: f"libdevice.{name}({', '.join(args)})"


def _function(name: str) -> Spelling:
    return lambda dtype, args, use: f"{name}({', '.join(args)})"


def _helper(name: str, unsigned: str | None = None) -> Spelling:
    """unsigned: what to call for uint8 instead."""

    def spell(dtype: torch.dtype, args: Sequence[str], use: Use) -> str:
        chosen = unsigned if unsigned is not None and dtype is torch.uint8 else name
        return f"{use(chosen)}({', '.join(args)})"

    return spell


def _shift(name: str, unsigned: str) -> Spelling:
    def spell(dtype: torch.dtype, args: Sequence[str], use: Use) -> str:
        chosen = unsigned if dtype is torch.uint8 else name
        return f"{use(chosen)}({', '.join(args)}, {dtype.itemsize * 8})"

    return spell


def _by_kind(floating: Spelling, integer: Spelling) -> Spelling:
    return lambda dtype, args, use: (floating if is_floating(dtype) else integer)(dtype, args, use)


def _infix(symbol: str) -> Spelling:
    return lambda dtype, args, use: f"{args[0]} {symbol} {args[1]}"


def _neg(dtype: torch.dtype, args: Sequence[str], use: Use) -> str:
    # Triton's minus may be a subtraction from 0, which loses the sign of a zero.
    return f"{args[0]} * -1.0" if is_floating(dtype) else f"0 - {args[0]}"


def _not(dtype: torch.dtype, args: Sequence[str], use: Use) -> str:
    if dtype is torch.bool:
        return f"{args[0]} == 0"
    return f"{args[0]} ^ 255" if dtype is torch.uint8 else f"~{args[0]}"


def _abs(dtype: torch.dtype, args: Sequence[str], use: Use) -> str:
    return args[0] if dtype is torch.uint8 else f"tl.abs({args[0]})"


def _div(dtype: torch.dtype, args: Sequence[str], use: Use) -> str:
    # `/` is exact for float64 alone.
    return f"tl.div_rn({args[0]}, {args[1]})" if dtype is torch.float32 else f"{args[0]} / {args[1]}"


def _sqrt(dtype: torch.dtype, args: Sequence[str], use: Use) -> str:
    return f"tl.sqrt_rn({args[0]})" if dtype is torch.float32 else f"tl.sqrt({args[0]})"


def _sigmoid(dtype: torch.dtype, args: Sequence[str], use: Use) -> str:
    return _div(dtype, ("1.0", f"(1.0 + libdevice.exp({args[0]} * -1.0))"), use)


def _signbit(dtype: torch.dtype, args: Sequence[str], use: Use) -> str:
    return f"{args[0]}.to({'tl.int64' if dtype is torch.float64 else 'tl.int32'}, bitcast=True) < 0"


SPELLINGS: Final[dict[str, Spelling]] = {
    **{op: _libdevice(name) for op, name in LIBDEVICE.items()},
    "add": _infix("+"),
    "sub": _infix("-"),
    "mul": _infix("*"),
    "div": _div,
    "neg": _neg,
    "abs": _abs,
    "sqrt": _sqrt,
    "trunc_div": _helper("trunc_div", "unsigned_div"),
    "floor_div": _helper("floor_div", "unsigned_div"),
    "trunc_rem": _by_kind(_libdevice("fmod"), _helper("trunc_rem", "unsigned_rem")),
    "floor_rem": _by_kind(_helper("floor_mod"), _helper("floor_rem", "unsigned_rem")),
    "maximum": _by_kind(_helper("maximum"), _function("tl.maximum")),
    "minimum": _by_kind(_helper("minimum"), _function("tl.minimum")),
    "fmax": _function("tl.maximum"),
    "fmin": _function("tl.minimum"),
    "floor": _function("tl.floor"),
    "ceil": _function("tl.ceil"),
    "eq": _infix("=="),
    "ne": _infix("!="),
    "lt": _infix("<"),
    "le": _infix("<="),
    "gt": _infix(">"),
    "ge": _infix(">="),
    "select": _function("tl.where"),
    "signbit": _signbit,
    "and": _infix("&"),
    "or": _infix("|"),
    "xor": _infix("^"),
    "not": _not,
    "shl": _shift("shift_left", "shift_left"),
    "shr": _shift("shift_right", "unsigned_shift_right"),
    "sigmoid": _sigmoid,
}
