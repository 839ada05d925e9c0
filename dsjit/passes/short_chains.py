"""Sums that are cut into parts, for precision.

Why: BLAS, and oneDNN on channels-last images, add up all products that make one element of a result in one chain of
additions, or in few. The rounding error of a chain grows with the square root of its length (Higham, Accuracy and
Stability of Numerical Algorithms, 2002, chapter 4). Where a pass puts such a library call in the place of another
that adds in shorter chains, it cuts the sums, so that results are no further from exact ones than eager's.
"""

from __future__ import annotations

from typing import Any

import torch

from dsjit.ir.graph import TensorType, Value, contiguous_strides
from dsjit.ops.row import GraphBuilder

__all__ = ["product_by_images", "product_in_parts"]

aten = torch.ops.aten


def product_in_parts(b: GraphBuilder, rows: Value, matrix: Value, parts: int) -> Value:
    """`rows @ matrix`, (m, k) by (k, n), as the sum of `parts` products of k / parts each; `parts` divides k.

    Linear in the nodes added: at most seven. The sum, if there is one, is a reduction, which fuses with what follows.
    """
    (m, k), n = rows.type.shape, matrix.type.shape[1]
    if parts == 1:
        return _product(b, aten.mm.default, (m, n), rows, matrix)
    left = b.call(aten.permute.default, b.call(aten.view.default, rows, (m, parts, k // parts)), (1, 0, 2))
    right = b.call(aten.view.default, matrix, (parts, k // parts, n))
    return b.call(aten.sum.dim_IntList, _product(b, aten.bmm.default, (parts, m, n), left, right), (0,))


def product_by_images(b: GraphBuilder, left: Value, right: Value) -> Value:
    """The sum over images and pixels of `left * right`, (channels of left, channels of right), of images in
    channels-last order: a product for each image, added to those before it, as eager's gradient of a weight is.

    Linear in the nodes added: eight.
    """
    batch, m, *window = left.type.shape
    n, pixels = right.type.shape[1], window[0] * window[1]
    rows = b.call(aten.view.default, b.call(aten.permute.default, left, (0, 2, 3, 1)), (batch, pixels, m))
    columns = b.call(aten.view.default, b.call(aten.permute.default, right, (0, 2, 3, 1)), (batch, pixels, n))
    zero = b.call(aten.full.default, (1, 1), 0.0, dtype=left.type.dtype, device=left.type.device)
    rows = b.call(aten.permute.default, rows, (0, 2, 1))
    return _product(b, aten.addbmm.default, (m, n), zero, rows, columns, beta=0)


def _product(b: GraphBuilder, op: Any, shape: tuple[int, ...], *operands: Value, **keywords: int) -> Value:
    type_ = TensorType(shape, operands[0].type.dtype, contiguous_strides(shape), operands[0].type.device)
    (value,) = b.call_typed(op, (type_,), *operands, **keywords)
    return value
