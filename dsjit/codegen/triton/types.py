"""How Triton calls the dtypes of kernels, and writes their numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import torch

from dsjit.ir.dtypes import FLOAT8, is_floating
from dsjit.ir.kernel import Param

__all__ = ["POINTER_TYPES", "TRITON_TYPES", "as_taken", "literal", "typed_number"]

TRITON_TYPES: Final[dict[torch.dtype, str]] = {
    torch.float64: "tl.float64",
    torch.float32: "tl.float32",
    torch.bfloat16: "tl.bfloat16",
    torch.float16: "tl.float16",
    torch.int64: "tl.int64",
    torch.int32: "tl.int32",
    torch.int16: "tl.int16",
    torch.int8: "tl.int8",
    torch.uint8: "tl.uint8",
    torch.bool: "tl.int1",
    torch.float8_e4m3fn: "tl.float8e4nv",
    torch.float8_e5m2: "tl.float8e5",
}

POINTER_TYPES: Final[dict[torch.dtype, str]] = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e5m2: "*fp8e5",
}
"""Of a buffer, in the signature that a kernel is compiled for."""


def as_taken(param: Param, name: str, float8_as_bits: bool) -> Param:
    """What a function takes for a buffer. float8_as_bits: older GPUs have no pointers to float8."""
    return replace(param, name=name, dtype=torch.uint8 if float8_as_bits and param.dtype in FLOAT8 else param.dtype)


def literal(value: float | int | bool, dtype: torch.dtype) -> str:
    """`value` as Python writes a number of this kind. Triton may lose the sign of a zero; `typed_number` keeps it."""
    if dtype is torch.bool:
        return str(bool(value))
    if not is_floating(dtype) and dtype not in FLOAT8:
        return str(int(value))
    number = float(value)
    return repr(number) if math.isfinite(number) else f'float("{number}")'


def typed_number(value: float | int | bool, dtype: torch.dtype) -> str:
    """A scalar of exactly this dtype."""
    if is_floating(dtype) and value == 0 and math.copysign(1.0, value) < 0:
        # Older versions of Triton make any zero from the type's null value.
        return f"{typed_number(0.0, dtype)} * -1.0"
    return f"tl.full([], {literal(value, dtype)}, {TRITON_TYPES[dtype]})"
