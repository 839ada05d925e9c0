"""Where a tensor's metadata is in memory: found by comparing with what torch reports, and proved by changing it.

`c10::TensorImpl` keeps, in a row, the number of dimensions, five sizes, five strides (`SizesAndStrides`, inline up to
five dimensions), the storage offset, the number of elements, a word of dtype, device and flags, and the dispatch key
set (c10/core/TensorImpl.h). This is torch's private layout: nothing here is trusted before every kind of change has
been seen to change the bytes that are compared.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

__all__ = ["INLINE_DIMENSIONS", "TensorLayout", "find_tensor_layout"]

INLINE_DIMENSIONS: Final = 5
"""Sizes and strides of tensors with more dimensions are elsewhere in memory (c10/core/impl/SizesAndStrides.h)."""

_SCANNED_WORDS: Final = 21
"""Words of a TensorImpl that are looked at; its fields take 21 or more in every supported torch."""


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Byte offsets.

    impl_offset: in the Python object, of the pointer to the TensorImpl.
    window: in the TensorImpl, of the 8-byte words that hold the metadata and the storage's address.
    """

    impl_offset: int
    window: tuple[int, ...]

    def read(self, tensor: torch.Tensor) -> tuple[int, ...]:
        """The words of the window now."""
        return tuple(_word(tensor._cdata + offset) for offset in self.window)


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


@functools.cache
def find_tensor_layout() -> TensorLayout | None:
    """The layout in this build of torch, or None when it is not what it is thought to be."""
    probe = torch.empty(8192).as_strided((2, 3, 5, 7, 11), (1, 13, 1001, 17, 31), 4)
    words = [_word(probe._cdata + 8 * number) for number in range(_SCANNED_WORDS)]
    pattern = [5, *probe.shape, *probe.stride(), probe.storage_offset(), probe.numel()]
    starts = [at for at in range(_SCANNED_WORDS - len(pattern) + 1) if words[at : at + len(pattern)] == pattern]
    storages = [at for at in range(_SCANNED_WORDS) if words[at] == probe.untyped_storage()._cdata]
    handles = [offset for offset in range(16, 40, 8) if _word(id(probe) + offset) == probe._cdata]
    if len(starts) != 1 or len(storages) != 1 or len(handles) != 1:
        return None
    # after the pattern: one word of dtype, device and flags, one word of dispatch keys
    fields = range(starts[0], starts[0] + len(pattern) + 2)
    layout = TensorLayout(handles[0], tuple(8 * number for number in (storages[0], *fields)))
    return layout if _proved(layout) else None


def _proved(layout: TensorLayout) -> bool:
    """Whether every kind of metadata change changes the window, and what changes no metadata leaves it alone."""

    def assign(value: torch.Tensor) -> Callable[[torch.Tensor], Any]:
        return lambda tensor: setattr(tensor, "data", value)

    swap: Callable[..., None] = torch.utils.swap_tensors
    complex_data = torch.zeros(4, 6, dtype=torch.complex64)
    changes: tuple[Callable[[torch.Tensor], Any], ...] = (
        lambda tensor: tensor.t_(),
        lambda tensor: tensor.resize_(6, 4),
        lambda tensor: tensor.resize_(2, 2, 2, 1, 1, 3),
        lambda tensor: tensor.squeeze_().unsqueeze_(0),
        lambda tensor: tensor.as_strided_((4, 6), (1, 4)),
        lambda tensor: tensor.as_strided_((2, 6), (6, 1)),
        lambda tensor: tensor.set_(torch.zeros(4, 6).untyped_storage()),
        assign(torch.zeros(4, 6)),
        assign(torch.zeros(4, 6, dtype=torch.int32)),
        assign(torch.zeros(4, 6, dtype=torch.bfloat16)),
        lambda tensor: swap(tensor, torch.zeros(4, 6)),
    )
    with torch.no_grad(), torch.inference_mode(False):
        for change in changes:
            tensor = torch.zeros(4, 6)
            before = _word(id(tensor) + layout.impl_offset), layout.read(tensor)
            change(tensor)
            if before == (_word(id(tensor) + layout.impl_offset), layout.read(tensor)):
                return False
        # Flags that share words with the rest: only the flag may differ, so the storage is shared.
        for tensor, other in (
            (complex_data, complex_data.conj()),
            (torch.view_as_real(complex_data)[..., 1], complex_data.conj().imag),
            (complex_data, torch.view_as_real(complex_data)),
            (torch.zeros(2), torch.zeros(2).view(torch.int32)),
            (torch.zeros(2), torch.zeros(2, device="meta")),
        ):
            if layout.read(tensor)[1:] == layout.read(other)[1:]:
                return False
        steady = torch.zeros(4, 6)
        before_values = layout.read(steady)
        steady.add_(1)
        steady.copy_(torch.ones(4, 6))
        return layout.read(steady) == before_values
