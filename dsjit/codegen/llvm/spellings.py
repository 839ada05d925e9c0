"""The non-transcendental rows of `SCALAR_OPS`, in LLVM IR; the others are in `codegen.llvm.math`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import torch

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand, element, mangle
from dsjit.codegen.llvm.types import literal, number
from dsjit.ir.dtypes import is_floating

__all__ = ["FAST_SPELLINGS", "SPELLINGS", "Spelling"]

Spelling: TypeAlias = Callable[[FunctionBuilder, torch.dtype, Sequence[Operand]], Operand]
"""From the operands' dtype (of `select`: of its last two) and the operands, scalars or vectors all of one length."""


def _arithmetic(name: str, flags: str = "") -> Spelling:
    """flags: what LLVM may do to the instruction on floats, as it spells that."""
    floating = f"f{name} {flags}".rstrip()

    def spell(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
        return b.binary(floating if is_floating(dtype) else name, args[0], args[1])

    return spell


def _bitwise(name: str) -> Spelling:
    def spell(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
        return b.binary(name, args[0], args[1])

    return spell


def _intrinsic(name: str) -> Spelling:
    def spell(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
        return b.intrinsic(name, list(args))

    return spell


def _comparison(ordered: str, integer: str) -> Spelling:
    def spell(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
        return b.compare(_predicate(dtype, ordered, integer), args[0], args[1])

    return spell


def _predicate(dtype: torch.dtype, ordered: str, integer: str) -> str:
    if is_floating(dtype):
        return f"fcmp {ordered}"
    if integer in ("eq", "ne"):
        return f"icmp {integer}"
    return f"icmp {'s' if _is_signed(dtype) else 'u'}{integer}"


def _is_signed(dtype: torch.dtype) -> bool:
    return dtype is not torch.uint8 and dtype is not torch.bool


def _constant(like: Operand, value: int, dtype: torch.dtype) -> Operand:
    return number(like, literal(value, dtype))


def _neg(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
    a = args[0]
    if is_floating(dtype):
        return b.assign(a.type, f"fneg {a}")
    return b.binary("sub", _constant(a, 0, dtype), a)


def _abs(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
    a = args[0]
    if is_floating(dtype):
        return b.intrinsic("fabs", [a])
    return b.call(a.type, f"llvm.abs.{mangle(a.type)}", [a, Operand("i1", "false")]) if _is_signed(dtype) else a


def _pick(comparison: str) -> Spelling:
    """maximum and minimum. `select(a > b, a, b)`, one x86 instruction, gives b when either is NaN; then a NaN a is
    put back. (`llvm.maximum` also orders the zeros, for which x86 has no instruction.)"""

    def spell(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
        x, y = args
        picked = b.select(b.compare(_predicate(dtype, f"o{comparison}", comparison), x, y), x, y)
        return b.select(b.compare("fcmp uno", x, x), x, picked) if is_floating(dtype) else picked

    return spell


def _pick_number(comparison: str) -> Spelling:
    """fmax and fmin: a NaN operand gives way to the other; of equal zeros, as eager, the first."""

    def spell(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
        x, y = args
        picked = b.select(b.compare(f"fcmp o{comparison}", y, x), y, x)
        return b.select(b.compare("fcmp uno", x, x), y, picked)

    return spell


def _select(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
    return b.select(args[0], args[1], args[2])


def _not(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
    return b.binary("xor", args[0], number(args[0], "true" if dtype is torch.bool else "-1"))


def _signbit(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
    bits = b.convert("bitcast", args[0], "i64" if dtype is torch.float64 else "i32")
    return b.compare("icmp slt", bits, number(bits, "0"))


# Integer division. No operand may reach a divide instruction that traps: neither b == 0 nor MIN / -1.


def _is_constant(a: Operand) -> bool:
    return not a.text.startswith("%")


def _quotient(b: FunctionBuilder, dtype: torch.dtype, x: Operand, y: Operand) -> Operand:
    """x / y towards zero; x when y == 0."""
    zero, one = _constant(y, 0, dtype), _constant(y, 1, dtype)
    if not _is_signed(dtype):
        return _unguarded_quotient(b, dtype, x, b.select(b.compare("icmp eq", y, zero), one, y))
    by_minus_one = b.compare("icmp eq", y, _constant(y, -1, dtype))
    unsafe = b.binary("or", b.compare("icmp eq", y, zero), by_minus_one)
    quotient = _unguarded_quotient(b, dtype, x, b.select(unsafe, one, y))
    return b.select(by_minus_one, _neg(b, dtype, [x]), quotient)


def _unguarded_quotient(b: FunctionBuilder, dtype: torch.dtype, x: Operand, y: Operand) -> Operand:
    """Vectors of up to 32 bits divide as floats: no machine divides integer vectors.

    That is exact: a quotient of n-bit integers that is no integer is further than a relative 2**-n from the nearest
    one, and the float's rounding error is below that (2**-24 for n <= 16, 2**-53 for n = 32).
    """
    bits = int(element(x.type)[1:])
    signed = _is_signed(dtype)
    if not x.type.startswith("<") or bits > 32 or _is_constant(y):
        return b.binary("sdiv" if signed else "udiv", x, y)
    to_float = "sitofp" if signed else "uitofp"
    wide = "double" if bits == 32 else "float"
    ratio = b.binary("fdiv", b.convert(to_float, x, wide), b.convert(to_float, y, wide))
    whole = b.convert("fptosi", ratio, "i32")
    return whole if bits == 32 else b.convert("trunc", whole, element(x.type))


def _trunc_div(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
    return _quotient(b, dtype, args[0], args[1])


def _remainder(b: FunctionBuilder, dtype: torch.dtype, x: Operand, y: Operand) -> tuple[Operand, Operand]:
    """The quotient towards zero, and x - quotient * y."""
    quotient = _quotient(b, dtype, x, y)
    return quotient, b.binary("sub", x, b.binary("mul", quotient, y))


def _signs_differ(b: FunctionBuilder, dtype: torch.dtype, remainder: Operand, y: Operand) -> Operand:
    """Whether a non-zero remainder has another sign than the divisor."""
    zero = _constant(y, 0, dtype)
    if is_floating(dtype):
        nonzero = b.compare("fcmp une", remainder, zero)
        differ = b.binary("xor", b.compare("fcmp olt", remainder, zero), b.compare("fcmp olt", y, zero))
    else:
        nonzero = b.compare("icmp ne", remainder, zero)
        differ = b.compare("icmp slt", b.binary("xor", remainder, y), zero)
    return b.binary("and", nonzero, differ)


def _floor_div(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
    x, y = args
    if not _is_signed(dtype):
        return _quotient(b, dtype, x, y)
    quotient, remainder = _remainder(b, dtype, x, y)
    lower = b.binary("add", quotient, _constant(x, -1, dtype))
    return b.select(_signs_differ(b, dtype, remainder, y), lower, quotient)


def _trunc_rem(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
    x, y = args
    return b.binary("frem", x, y) if is_floating(dtype) else _remainder(b, dtype, x, y)[1]


def _floor_rem(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
    y = args[1]
    remainder = _trunc_rem(b, dtype, args)
    if dtype is torch.uint8:
        return remainder
    moved = b.binary("fadd" if is_floating(dtype) else "add", remainder, y)
    return b.select(_signs_differ(b, dtype, remainder, y), moved, remainder)


def _shift_is_legal(b: FunctionBuilder, dtype: torch.dtype, places: Operand) -> Operand:
    """0 <= places < width, as one unsigned comparison."""
    return b.compare("icmp ult", places, number(places, str(dtype.itemsize * 8)))


def _shl(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
    x, places = args
    zero = _constant(x, 0, dtype)
    legal = _shift_is_legal(b, dtype, places)
    return b.select(legal, b.binary("shl", x, b.select(legal, places, zero)), zero)


def _shr(b: FunctionBuilder, dtype: torch.dtype, args: Sequence[Operand]) -> Operand:
    x, places = args
    legal = _shift_is_legal(b, dtype, places)
    if dtype is torch.uint8:
        zero = _constant(x, 0, dtype)
        return b.select(legal, b.binary("lshr", x, b.select(legal, places, zero)), zero)
    return b.binary("ashr", x, b.select(legal, places, _constant(x, dtype.itemsize * 8 - 1, dtype)))


SPELLINGS: Final[dict[str, Spelling]] = {
    "add": _arithmetic("add"),
    "sub": _arithmetic("sub"),
    "mul": _arithmetic("mul"),
    "div": _arithmetic("div"),
    "neg": _neg,
    "abs": _abs,
    "fma": _intrinsic("fma"),
    "sqrt": _intrinsic("sqrt"),
    "trunc_div": _trunc_div,
    "floor_div": _floor_div,
    "trunc_rem": _trunc_rem,
    "floor_rem": _floor_rem,
    "maximum": _pick("gt"),
    "minimum": _pick("lt"),
    "fmax": _pick_number("gt"),
    "fmin": _pick_number("lt"),
    "copysign": _intrinsic("copysign"),
    "floor": _intrinsic("floor"),
    "ceil": _intrinsic("ceil"),
    "trunc": _intrinsic("trunc"),
    "round": _intrinsic("roundeven"),
    "eq": _comparison("oeq", "eq"),
    "ne": _comparison("une", "ne"),
    "lt": _comparison("olt", "lt"),
    "le": _comparison("ole", "le"),
    "gt": _comparison("ogt", "gt"),
    "ge": _comparison("oge", "ge"),
    "select": _select,
    "signbit": _signbit,
    "and": _bitwise("and"),
    "or": _bitwise("or"),
    "xor": _bitwise("xor"),
    "not": _not,
    "shl": _shl,
    "shr": _shr,
}

_FREE: Final = "reassoc contract"
"""Multiply-adds may become one instruction that rounds once, and constants may be combined. Not `arcp`: a reciprocal of
a denormal overflows, and LLVM's estimate of 1 / sqrt(x) is NaN at 0 and infinity. Not `afn`: it does nothing without
`ninf`, which says, as `nnan` does, that there are no such numbers."""

FAST_SPELLINGS: Final[dict[str, Spelling]] = SPELLINGS | {
    name: _arithmetic(name, _FREE) for name in ("add", "sub", "mul")
}
"""`SPELLINGS` for `numerics="fast"`."""
