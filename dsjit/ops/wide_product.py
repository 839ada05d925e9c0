"""A product of matrices in reduced precision whose sums are not rounded: for what is added up further."""

from __future__ import annotations

import torch
from torch import Tensor

from dsjit.ir.dtypes import compute_dtype

__all__ = ["wide_product"]


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` in float32.

    left: (rows, depth), bfloat16 or float16. right: (depth, columns), of the same dtype.
    Returns float32, (rows, columns), contiguous. Operands of a wider dtype keep it.
    """
    wide = compute_dtype(left.dtype)
    if left.is_cuda and wide is not left.dtype:
        return torch.mm(left, right, out_dtype=wide)
    return left.to(wide) @ right.to(wide)
