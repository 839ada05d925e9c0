"""Matrix products that the native driver can hand to BLAS directly, without going through Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from dsjit.fusion.affine import Affine, NotAffine, linearize
from dsjit.fusion.views import Views
from dsjit.ir.graph import Node, Value

__all__ = ["MATMUL_OPS", "MatmulPlan", "Matrix", "matrix_of", "plan_matmul"]

aten = torch.ops.aten

MATMUL_OPS: Final = frozenset({aten.mm.default, aten.bmm.default})
GEMM_DTYPES: Final = frozenset({torch.float32, torch.float64})


@dataclass(frozen=True, slots=True)
class Matrix:
    """A (batch of) row-major matrices inside the buffer of `base`: element (b, i, j) lies at
    `offset + b * batch + i * row + j * column` elements."""

    base: Value
    offset: int
    batch: int
    row: int
    column: int


@dataclass(frozen=True, slots=True)
class MatmulPlan:
    """`c[b] = a[b] @ b[b]` for `batch` products of sizes m, n, k."""

    a: Matrix
    b: Matrix
    c: Matrix
    batch: int
    m: int
    n: int
    k: int
    dtype: torch.dtype

    @property
    def buffers(self) -> tuple[Value, ...]:
        """Those that it reads and writes."""
        return self.a.base, self.b.base, self.c.base


def plan_matmul(node: Node, views: Views) -> MatmulPlan | None:
    """How BLAS can compute `node`; None when it cannot (dtype, an empty size, or no unit stride)."""
    if node.op not in MATMUL_OPS:
        return None
    left, right = node.args[0], node.args[1]
    out = node.output
    if out.type.dtype not in GEMM_DTYPES or out.type.device.type != "cpu":
        return None
    if left.type.dtype is not out.type.dtype or right.type.dtype is not out.type.dtype:
        return None
    *lead, m, n = out.type.shape
    k = left.type.shape[-1]
    batch = lead[0] if lead else 1
    if 0 in (batch, m, n, k) or not out.type.is_contiguous:
        return None
    a, b = matrix_of(left, views), matrix_of(right, views)
    if a is None or b is None or not _is_blas(a, m, k) or not _is_blas(b, k, n):
        return None
    return MatmulPlan(a, b, Matrix(out, 0, m * n, n, 1), batch, m, n, k, out.type.dtype)


def matrix_of(value: Value, views: Views) -> Matrix | None:
    """Where the matrices lie that a Value of two or three dimensions is; None when it has no affine index."""
    rank = len(value.type.shape)
    try:
        base, index = views.follow(value, (Affine(),) * rank, {})
    except NotAffine:
        return None
    offset = linearize(index, base.type.strides).offset
    strides = value.type.strides
    batch = strides[0] if rank == 3 else 0
    return Matrix(base, offset, batch, strides[-2], strides[-1])


def _is_blas(matrix: Matrix, rows: int, columns: int) -> bool:
    """Whether one of the two strides is 1 (a single row or column counts) and the other is a leading dimension."""
    by_rows = (matrix.column == 1 or columns == 1) and (matrix.row >= columns or rows == 1)
    by_columns = (matrix.row == 1 or rows == 1) and (matrix.column >= rows or columns == 1)
    return by_rows or by_columns
