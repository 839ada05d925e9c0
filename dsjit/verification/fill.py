"""Tensors of a given layout, filled at random."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dsjit.ir.graph import contiguous_strides

__all__ = ["filled"]


def filled(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, strides: Sequence[int] | None = None, offset: int = 0
) -> torch.Tensor:
    """A tensor of this shape, with these strides and that storage offset in elements (row-major by default), filled by
    torch's random generator: floats by the normal distribution, integers and bools with 0 and 1, which are good
    indices."""
    steps = contiguous_strides(tuple(shape)) if strides is None else tuple(strides)
    span = offset + 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True) if size)
    if dtype.is_floating_point or dtype.is_complex:
        memory = torch.randn(span, dtype=torch.complex128 if dtype.is_complex else torch.float64)
    else:
        memory = torch.randint(0, 2, (span,))
    return memory.to(dtype).as_strided(tuple(shape), steps, offset)
