"""Small tensors of whole numbers, on which sums and products are exact in any order."""

from __future__ import annotations

import math

import torch

__all__ = ["whole"]


def whole(*shape: int, start: int = -3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A new tensor of this shape that counts up from `start`."""
    return torch.arange(start, start + math.prod(shape), dtype=dtype).reshape(shape)
