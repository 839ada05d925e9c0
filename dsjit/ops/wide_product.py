"""A product of matrices in reduced precision whose sums are not rounded: for what is added up further."""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from dsjit.ir.dtypes import compute_dtype

__all__ = ["has_matrix_units", "wide_product"]


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` in float32.

    left: (rows, depth), bfloat16 or float16. right: (depth, columns), of the same dtype.
    Returns float32, (rows, columns), contiguous. Operands of a wider dtype keep it.
    """
    wide = compute_dtype(left.dtype)
    if left.is_cuda and wide is not left.dtype:
        return torch.mm(left, right, out_dtype=wide)
    return left.to(wide) @ right.to(wide)


def has_matrix_units(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of `dtype` several times faster than those of float32."""
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    if dtype is not torch.bfloat16:
        return False
    if platform.machine() in ("aarch64", "arm64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # elsewhere this holds where they are emulated, too
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
