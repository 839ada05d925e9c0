"""Conversions of float8 numbers, as `c10::Float8_e4m3fn` and `c10::Float8_e5m2` convert, without branches.

A number of such a format, without its sign, has bits that count up with it, as those of float32 do: shifted to where
float32 has exponent and fraction, they are its bits but for the bias of the exponent. Only below the smallest normal
number the steps between numbers stay the same.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand
from dsjit.codegen.llvm.types import literal, number
from dsjit.ir.dtypes import float8_beyond

__all__ = ["from_float8", "to_float8"]


@dataclass(frozen=True, slots=True)
class _Format:
    """shift: bits of float32's fraction that it has not. bias: by how much float32's bias of the exponent is more.
    step: between the smallest numbers. normal: the smallest number with an exponent. last: the largest number that is
    not rounded beyond the format. special: the least bits that are no number."""

    shift: int
    bias: int
    step: float
    normal: float
    last: float
    special: int


FORMATS: Final[Mapping[torch.dtype, _Format]] = {
    # 480 would be the next number, but its bits are NaN's; half of the way there is rounded to the even 448.
    torch.float8_e4m3fn: _Format(20, 120, 2.0**-9, 2.0**-6, 464.0, 0x7F),
    # Half of the way from 57344 to 65536, which is infinity, is rounded to that.
    torch.float8_e5m2: _Format(21, 112, 2.0**-16, 2.0**-14, 61439.99609375, 0x7C),
}
NAN: Final = 0x7F
INFINITY: Final = 0x7F800000


def to_float8(b: FunctionBuilder, a: Operand, dtype: torch.dtype) -> Operand:
    """The bits (i8) of the number nearest to a float, ties to even. Beyond the range: see `float8_beyond`."""
    form = FORMATS[dtype]
    bits = b.convert("bitcast", a, "i32")
    size = b.binary("and", bits, number(bits, "2147483647"))
    odd = b.binary("and", b.binary("lshr", size, number(size, str(form.shift))), number(size, "1"))
    rounded = b.binary("add", b.binary("add", size, number(size, str((1 << (form.shift - 1)) - 1))), odd)
    code = b.binary("lshr", rounded, number(size, str(form.shift)))
    normal = b.binary("sub", code, number(size, str(form.bias << (23 - form.shift))))
    # The float `steps` is so large that its own last bit is worth a step: adding it rounds to a number of steps.
    steps = form.step * 2.0**23
    magnitude = b.convert("bitcast", size, "float")
    counted = b.convert("bitcast", b.binary("fadd", magnitude, number(magnitude, _float(steps))), "i32")
    small = b.binary("sub", counted, number(counted, str(_bits(steps))))
    found = b.select(b.compare("icmp ult", size, number(size, str(_bits(form.normal)))), small, normal)
    is_beyond = b.compare("icmp ugt", size, number(size, str(_bits(form.last))))
    found = b.select(is_beyond, number(size, str(float8_beyond(dtype))), found)
    found = b.select(b.compare("icmp ugt", size, number(size, str(INFINITY))), number(size, str(NAN)), found)
    sign = b.binary("and", b.binary("lshr", bits, number(bits, "24")), number(bits, "128"))
    return b.convert("trunc", b.binary("or", found, sign), "i8")


def from_float8(b: FunctionBuilder, a: Operand, dtype: torch.dtype) -> Operand:
    """The float that the bits `a` (i8) stand for."""
    form = FORMATS[dtype]
    wide = b.convert("zext", a, "i32")
    code = b.binary("and", wide, number(wide, "127"))
    shifted = b.binary("shl", code, number(code, str(form.shift)))
    normal = b.binary("add", shifted, number(code, str(form.bias << 23)))
    counted = b.convert("sitofp", code, "float")
    small = b.convert("bitcast", b.binary("fmul", counted, number(counted, _float(form.step))), "i32")
    least = round(form.normal / form.step)
    found = b.select(b.compare("icmp ult", code, number(code, str(least))), small, normal)
    special = b.binary("or", shifted, number(code, str(INFINITY)))
    found = b.select(b.compare("icmp uge", code, number(code, str(form.special))), special, found)
    sign = b.binary("shl", b.binary("and", wide, number(wide, "128")), number(wide, "24"))
    return b.convert("bitcast", b.binary("or", found, sign), "float")


def _bits(value: float) -> int:
    found: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return found


def _float(value: float) -> str:
    return literal(value, torch.float32)
