"""Views, copies and writes by sizes and strides, relative to a tensor's own first element.

ATen's `as_strided` counts its offset from the start of the storage, which depends on where a buffer happens to lie;
these count it from the tensor, so that they mean the same for an input, a planned buffer and a fresh tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch

__all__ = ["StridedView", "fresh_copy", "span", "strided_scatter", "strided_view"]

StridedView: TypeAlias = (
    tuple[tuple[int, ...], tuple[int, ...], int] | tuple[tuple[int, ...], tuple[int, ...], int, torch.dtype]
)
"""What `strided_view` takes beside a tensor."""


def span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements of memory from the first to the last one of a tensor."""
    if math.prod(shape) == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def strided_view(
    tensor: torch.Tensor,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """A view of `tensor`'s memory with these sizes and strides (elements), `offset` elements after its first one.

    dtype: of the view, whose elements are then what is counted; no wider than that of `tensor`.
    """
    if dtype is not None:
        tensor = tensor.as_strided((span(tensor.shape, tensor.stride()),), (1,)).view(dtype)
    return tensor.as_strided(size, stride, tensor.storage_offset() + offset)


def fresh_copy(tensor: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """A copy of `tensor` with these strides (elements), which must be dense."""
    result = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    return result.copy_(tensor)


def strided_scatter(
    tensor: torch.Tensor, source: torch.Tensor, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0
) -> torch.Tensor:
    """A copy of `tensor` (same strides, which must be dense) in which `strided_view(...)` holds `source`."""
    result = fresh_copy(tensor, tensor.stride())
    strided_view(result, size, stride, offset).copy_(source)
    return result
