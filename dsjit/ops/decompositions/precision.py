"""What decompositions share: computing in fp32 what arrives in bf16 or fp16, and rounding once at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch

from dsjit.ir.dtypes import compute_dtype
from dsjit.ir.graph import TensorType, Value
from dsjit.ops.row import Decomposition, GraphBuilder, OpRow

__all__ = ["Outputs", "Rewritten", "cast", "count", "rewrites", "widen"]

aten = torch.ops.aten

Outputs: TypeAlias = tuple[TensorType, ...]
Rewritten: TypeAlias = tuple[Value | None, ...] | None


def cast(b: GraphBuilder, x: Value, dtype: torch.dtype) -> Value:
    """`x` in `dtype`; `x` itself when it is."""
    return x if x.type.dtype is dtype else b.call(aten._to_copy.default, x, dtype=dtype)


def widen(b: GraphBuilder, x: Value) -> Value:
    """`x` in the dtype in which ATen computes with it: fp32 for bf16 and fp16."""
    return cast(b, x, compute_dtype(x.type.dtype))


def count(shape: tuple[int, ...], dims: tuple[int, ...]) -> int:
    """The number of elements along `dims`."""
    product = 1
    for d in dims:
        product *= shape[d]
    return product


def rewrites(table: Mapping[str, Callable[..., Rewritten]]) -> Mapping[str, OpRow]:
    """Rows of decompositions, from rewrite functions by name without `aten.`."""
    return {f"aten.{name}": OpRow(f"aten.{name}", Decomposition(rewrite)) for name, rewrite in table.items()}
