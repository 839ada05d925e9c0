"""Views and writes by sizes and strides, relative to a tensor's own first element.

ATen's `as_strided` counts its offset from the start of the storage, which depends on where a buffer happens to lie;
these two count it from the tensor, so that they mean the same for an input, a planned buffer and a fresh tensor.
"""

from __future__ import annotations

import torch

__all__ = ["strided_scatter", "strided_view"]


def strided_view(tensor: torch.Tensor, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> torch.Tensor:
    """A view of `tensor`'s memory with these sizes and strides (elements), `offset` elements after its first one."""
    return tensor.as_strided(size, stride, tensor.storage_offset() + offset)


def strided_scatter(
    tensor: torch.Tensor, source: torch.Tensor, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0
) -> torch.Tensor:
    """A copy of `tensor` (same strides, which must be dense) in which `strided_view(...)` holds `source`."""
    result = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    result.copy_(tensor)
    strided_view(result, size, stride, offset).copy_(source)
    return result
