"""How dtypes look in memory and in registers, and how numbers are spelled, in textual LLVM IR."""

from __future__ import annotations

import struct
from functools import cache
from typing import Final

import torch

from dsjit.codegen.llvm.builder import Operand, element, lanes
from dsjit.ir.dtypes import is_floating

__all__ = [
    "MEMORY_TYPES",
    "REGISTER_TYPES",
    "constant",
    "first_lanes",
    "lane_numbers",
    "literal",
    "number",
    "splat",
    "vector",
]

MEMORY_TYPES: Final[dict[torch.dtype, str]] = {
    torch.float64: "double",
    torch.float32: "float",
    torch.bfloat16: "i16",
    torch.float16: "half",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "i8",
    torch.bool: "i8",
    torch.float8_e4m3fn: "i8",
    torch.float8_e5m2: "i8",
}

REGISTER_TYPES: Final[dict[torch.dtype, str]] = {
    **MEMORY_TYPES,
    torch.bfloat16: "float",
    torch.bool: "i1",
}
"""A bfloat16 value lives in a float register whose lower 16 bits are 0: widening it is free. float8 stays as it is."""


def vector(lanes: int, element: str) -> str:
    """`<16 x float>`."""
    return f"<{lanes} x {element}>"


def literal(value: float | int | bool, dtype: torch.dtype) -> str:
    """A number as LLVM spells a constant of the register type of `dtype`, rounded to nearest even, integers wrapped."""
    if dtype is torch.bool:
        return "true" if value else "false"
    if is_floating(dtype):
        return _float_literal(struct.pack("<d", value), dtype)
    bits = dtype.itemsize * 8
    wrapped = int(value) % (1 << bits)
    return str(wrapped - (1 << bits) if dtype.is_signed and wrapped >= 1 << (bits - 1) else wrapped)


@cache
def _float_literal(double: bytes, dtype: torch.dtype) -> str:
    """Keyed by the bits, as 0.0 == -0.0."""
    if dtype is not torch.float64:
        wide: torch.Tensor = torch.frombuffer(bytearray(double), dtype=torch.float64)
        narrow = wide.to(dtype)
        if dtype is torch.float16:
            return f"0xH{int(narrow.view(torch.int16).item()) & 0xFFFF:04X}"
        double = struct.pack("<d", narrow.item())
    return f"0x{struct.unpack('<Q', double)[0]:016X}"


def constant(value: float | int | bool, dtype: torch.dtype) -> Operand:
    """A scalar constant in the register type of `dtype`."""
    return Operand(REGISTER_TYPES[dtype], literal(value, dtype))


def splat(lanes: int, scalar: Operand) -> Operand:
    """The vector constant with `scalar`, itself a constant, in each lane."""
    return Operand(vector(lanes, scalar.type), f"splat ({scalar})")


def number(like: Operand, text: str) -> Operand:
    """The constant `text`, in the type of `like` (a splat for a vector)."""
    if like.type.startswith("<"):
        return splat(lanes(like.type), Operand(element(like.type), text))
    return Operand(like.type, text)


@cache
def lane_numbers(lanes: int, step: int, element: str) -> Operand:
    """The vector constant 0, step, 2*step, ..."""
    numbers = ", ".join(f"{element} {lane * step}" for lane in range(lanes))
    return Operand(vector(lanes, element), f"<{numbers}>")


@cache
def first_lanes(lanes: int, active: int) -> Operand:
    """The mask constant whose first `active` lanes are true."""
    bits = ", ".join(f"i1 {'true' if lane < active else 'false'}" for lane in range(lanes))
    return Operand(vector(lanes, "i1"), f"<{bits}>")
