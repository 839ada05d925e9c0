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

__all__ = ["product_in_parts"]

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


def _product(b: GraphBuilder, op: Any, shape: tuple[int, ...], left: Value, right: Value) -> Value:
    type_ = TensorType(shape, left.type.dtype, contiguous_strides(shape), left.type.device)
    (value,) = b.call_typed(op, (type_,), left, right)
    return value
