"""Whether an op that writes one tensor reads another whose elements lie elsewhere in the same memory.

What it then reads, old elements or new ones, depends on the order in which its loops go. Torch refuses such calls where
it sees that tensors overlap (aten/src/ATen/MemoryOverlap.h); of tensors with gaps in memory, it leaves the answer open.
"""

from __future__ import annotations

from typing import Any, Final

import torch

__all__ = ["PRODUCTS", "lies_within", "overlap_partially"]

aten = torch.ops.aten

PRODUCTS: Final[frozenset[Any]] = frozenset(
    {aten.addmm_.default, aten.addbmm_.default, aten.baddbmm_.default, aten.addmv_.default,
     aten.mm.out, aten.bmm.out, aten.mv.out, aten.addmm.out, aten.addbmm.out, aten.baddbmm.out, aten.addmv.out}
)  # fmt: skip
"""Ops that write a product, and read elements of their operands after they have begun to."""


def overlap_partially(written: torch.Tensor, read: torch.Tensor) -> bool:
    """Whether an element of `read`, which is broadcast to the shape of `written`, is one of `written` at another index.

    Both are strided tensors on one storage; `written` does not overlap itself.
    """
    if not written.numel() or not read.numel() or _lie_alike(written, read):
        return False
    unit = min(written.dtype.itemsize, read.dtype.itemsize)
    extents = [_extent(tensor, unit) for tensor in (written, read)]
    start, end = min(first for first, _ in extents), max(last for _, last in extents)
    if extents[0][1] <= extents[1][0] or extents[1][1] <= extents[0][0]:
        return False
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        marks = torch.zeros(end - start, dtype=torch.bool)
        _elements(marks, written, unit, start).fill_(True)
        return bool(_elements(marks, read, unit, start).any())


def lies_within(part: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether each element of `part` is one of `whole`, on the same storage: in no gap between them."""
    if not part.numel():
        return True
    (start, end), (first, last) = _extent(whole, whole.dtype.itemsize), _extent(part, whole.dtype.itemsize)
    if whole.is_contiguous() or first < start or last > end:
        return start <= first and last <= end
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        marks = torch.zeros(end - start, dtype=torch.bool)
        _elements(marks, whole, whole.dtype.itemsize, start).fill_(True)
        return bool(_elements(marks, part, whole.dtype.itemsize, start).all())


def _lie_alike(written: torch.Tensor, read: torch.Tensor) -> bool:
    """Whether each element of `read` is that of `written` at the same index."""
    if (read.dtype, read.storage_offset()) != (written.dtype, written.storage_offset()):
        return False
    return _steps(read) == _steps(written)


def _steps(tensor: torch.Tensor) -> list[tuple[int, int]]:
    dims = zip(tensor.shape, tensor.stride(), strict=True)
    return [(size, stride) for size, stride in dims if size > 1]


def _extent(tensor: torch.Tensor, unit: int) -> tuple[int, int]:
    """Where it begins in its storage, and the first place behind it, in `unit` bytes."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    scale = tensor.dtype.itemsize // unit
    start = int(tensor.storage_offset())
    return start * scale, (start + last + 1) * scale


def _elements(marks: torch.Tensor, tensor: torch.Tensor, unit: int, start: int) -> torch.Tensor:
    """The marks, which begin at `start`, of what `tensor` holds; each is for `unit` bytes."""
    scale = tensor.dtype.itemsize // unit
    strides = [stride * scale for stride in tensor.stride()]
    offset = int(tensor.storage_offset()) * scale - start
    return marks.as_strided((*tensor.shape, scale), (*strides, 1), offset)
