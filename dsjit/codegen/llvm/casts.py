"""Conversions between the register forms of the kernel dtypes, as eager converts."""

from __future__ import annotations

from typing import Final

import torch

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand, element, lanes, with_element
from dsjit.codegen.llvm.float8 import from_float8, to_float8
from dsjit.codegen.llvm.target import Target
from dsjit.codegen.llvm.types import REGISTER_TYPES, literal, number
from dsjit.ir.dtypes import FLOAT8, is_floating

__all__ = ["cast_value", "round_to_bfloat16"]


def cast_value(b: FunctionBuilder, target: Target, a: Operand, source: torch.dtype, to: torch.dtype) -> Operand:
    """`a`, the register form of a value of dtype `source`, converted to the register form of `to`.

    Every conversion to bfloat16, float16 or float8 goes through float32, as `c10::BFloat16` and its like have it.
    """
    if source is to:
        return a
    if source in FLOAT8:
        return cast_value(b, target, from_float8(b, a, source), torch.float32, to)
    if to in FLOAT8:
        return to_float8(b, cast_value(b, target, a, source, torch.float32), to)
    if source is torch.bfloat16:
        return a if to is torch.float32 else cast_value(b, target, a, torch.float32, to)
    if source is torch.float16:
        wide = b.convert("fpext", a, "float")
        return wide if to is torch.float32 else cast_value(b, target, wide, torch.float32, to)
    if to is torch.bool:
        zero = number(a, literal(0, source))
        return b.compare("fcmp une" if is_floating(source) else "icmp ne", a, zero)
    if to is torch.bfloat16:
        return round_to_bfloat16(b, cast_value(b, target, a, source, torch.float32))
    if to is torch.float16:
        return b.convert("fptrunc", cast_value(b, target, a, source, torch.float32), "half")
    if is_floating(source):
        if is_floating(to):
            return b.convert("fpext" if to is torch.float64 else "fptrunc", a, REGISTER_TYPES[to])
        return _float_to_integer(b, target, a, source, to)
    unsigned = source is torch.bool or source is torch.uint8
    if is_floating(to):
        return b.convert("uitofp" if unsigned else "sitofp", a, REGISTER_TYPES[to])
    return _resize(b, a, REGISTER_TYPES[to], unsigned)


def _resize(b: FunctionBuilder, a: Operand, to: str, unsigned: bool) -> Operand:
    have, want = int(element(a.type)[1:]), int(to[1:])
    if have == want:
        return a
    return b.convert("trunc" if have > want else "zext" if unsigned else "sext", a, to)


def round_to_bfloat16(b: FunctionBuilder, a: Operand) -> Operand:
    """float32 to the nearest bfloat16, ties to even, denormals kept, any NaN to the quiet NaN 0x7FC0.

    The result stays in a float register: adding 0x7FFF plus the lowest bit that is kept carries into that bit
    exactly when the remainder is above a half, or is a half and the bit is odd; then the lower half is cleared.
    """
    bits = b.convert("bitcast", a, "i32")
    odd = b.binary("and", b.binary("lshr", bits, number(bits, "16")), number(bits, "1"))
    rounded = b.binary("add", b.binary("add", bits, number(bits, "32767")), odd)
    cleared = b.binary("and", rounded, number(bits, "-65536"))
    is_nan = b.compare("fcmp uno", a, a)
    return b.convert("bitcast", b.select(is_nan, number(bits, str(0x7FC00000)), cleared), "float")


_VIA: Final[dict[torch.dtype, str]] = {
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i32",
    torch.int8: "i32",
    torch.uint8: "i64",
}
"""The integer through which C++ compilers on x86-64, and ATen for uint8, convert a float to a narrower one."""


def _float_to_integer(b: FunctionBuilder, target: Target, a: Operand, source: torch.dtype, to: torch.dtype) -> Operand:
    """Truncation. Out of range: on x86 the "integer indefinite" value, the most negative number, of the intermediate
    integer; elsewhere saturation, and 0 for a NaN. The narrower dtypes keep its lowest bits."""
    via = _VIA[to]
    wide = with_element(a.type, via)
    if target.is_x86:
        bits = int(via[1:])
        low = number(a, literal(-(2.0 ** (bits - 1)), source))
        high = number(a, literal(2.0 ** (bits - 1), source))
        # float64 has numbers between -2**31 - 1 and -2**31, which truncate to -2**31: what out of range gives as well.
        inside = b.binary("and", b.compare("fcmp oge", a, low), b.compare("fcmp olt", a, high))
        converted = b.convert("fptosi", a, via)
        result = b.select(inside, converted, number(converted, str(-(2 ** (bits - 1)))))
    else:
        result = b.intrinsic(f"fptosi.sat.{_suffix(wide)}", [a], wide)
    return _resize(b, result, REGISTER_TYPES[to], unsigned=False)


def _suffix(type_: str) -> str:
    return f"v{lanes(type_)}{element(type_)}" if type_.startswith("<") else type_
