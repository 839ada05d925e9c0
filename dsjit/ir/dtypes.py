"""Facts about dtypes that both IRs share."""

from __future__ import annotations

from functools import cache
from typing import Final

import torch

__all__ = [
    "FLOAT8",
    "FLOATING",
    "INTEGRAL",
    "KERNEL_DTYPES",
    "SHORT_NAMES",
    "compute_dtype",
    "float8_beyond",
    "is_floating",
    "is_integral",
    "short_name",
]

SHORT_NAMES: Final[dict[torch.dtype, str]] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}
"""The dtypes that a Kernel can load, compute and store, with the names that IRs print."""

KERNEL_DTYPES: Final[frozenset[torch.dtype]] = frozenset(SHORT_NAMES)

FLOAT8: Final[frozenset[torch.dtype]] = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
"""Kernels can load and store these, and convert them to float32 and from it; matrix products take them as they are."""


@cache
def float8_beyond(dtype: torch.dtype) -> int:
    """The bits of what eager makes of numbers beyond the range: for e5m2 infinity; for e4m3fn NaN or, in later versions
    of torch, the largest number."""
    return int(torch.tensor([torch.inf]).to(dtype).view(torch.uint8).item())


FLOATING: Final[frozenset[torch.dtype]] = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})

INTEGRAL: Final[frozenset[torch.dtype]] = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})


def is_floating(dtype: torch.dtype) -> bool:
    """Whether `dtype` is a floating-point dtype that kernels can hold."""
    return dtype in FLOATING


def is_integral(dtype: torch.dtype) -> bool:
    """Whether `dtype` is an integer dtype (bool excluded) that kernels can hold."""
    return dtype in INTEGRAL


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which eager computes a pointwise op whose result has `dtype`.

    bf16 and fp16 compute in fp32 and round once at the op's end (`at::opmath_type` in ATen), and so do those of 8 bits;
    every other dtype computes in itself.
    """
    if dtype is torch.bfloat16 or dtype is torch.float16 or dtype in FLOAT8:
        return torch.float32
    return dtype


def short_name(dtype: torch.dtype) -> str:
    """`f32` for `torch.float32`; the torch name without its prefix for dtypes that kernels cannot hold."""
    return SHORT_NAMES.get(dtype) or str(dtype).removeprefix("torch.")
