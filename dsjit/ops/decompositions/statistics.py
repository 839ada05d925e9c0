"""Means, variances, norms and extrema with their positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import torch

from dsjit.ir.dtypes import compute_dtype
from dsjit.ir.graph import Value
from dsjit.ops.decompositions.precision import Outputs, Rewritten, cast, count, rewrites, widen
from dsjit.ops.inference import reduced_shape
from dsjit.ops.reductions import listed_dims
from dsjit.ops.row import GraphBuilder, OpRow

__all__ = ["ROWS"]

aten = torch.ops.aten

Dims: TypeAlias = int | tuple[int, ...] | None


def _dims(x: Value, dim: Dims) -> tuple[int, ...]:
    return listed_dims(dim, len(x.type.shape))


def mean(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    self: Value,
    dim: Dims = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Rewritten:
    """The sum, divided; bf16 and fp16 are summed and divided in fp32."""
    result = outputs[0].dtype
    dims = _dims(self, dim)
    x = cast(b, self, compute_dtype(result))
    total = b.call(aten.sum.dim_IntList, x, dims, keepdim)
    return (cast(b, b.call(aten.div.Tensor, total, count(self.type.shape, dims)), result),)


def _moments(
    b: GraphBuilder, x: Value, dims: tuple[int, ...], keepdim: bool, correction: float | None
) -> tuple[Value, Value]:
    """(variance, mean), accumulated in fp64 for fp32 and fp64, in fp32 for bf16 and fp16, as ATen does."""
    source = x.type.dtype
    wide = cast(b, x, torch.float64 if source is torch.float32 else compute_dtype(source))
    size = count(x.type.shape, dims)
    average = b.call(aten.div.Tensor, b.call(aten.sum.dim_IntList, wide, dims, True), size)
    centred = b.call(aten.sub.Tensor, wide, average)
    total = b.call(aten.sum.dim_IntList, b.call(aten.mul.Tensor, centred, centred), dims, keepdim)
    divisor = max(0.0, size - (1 if correction is None else correction))
    variance = b.call(aten.div.Tensor, total, divisor)
    if not keepdim:
        average = b.call(aten.view.default, average, reduced_shape(x.type.shape, dims, False))
    return variance, average


def variance_rewrite(root: bool, with_mean: bool) -> Callable[..., Rewritten]:
    """The rewrite of `var`, `std`, `var_mean` or `std_mean` (`.correction`)."""

    def rewrite(
        b: GraphBuilder,
        outputs: Outputs,
        *,
        self: Value,
        dim: Dims = None,
        correction: float | None = None,
        keepdim: bool = False,
    ) -> Rewritten:
        if self.type.numel == 0:
            return None
        spread, average = _moments(b, self, _dims(self, dim), keepdim, correction)
        if root:
            spread = b.call(aten.sqrt.default, spread)
        dtype = outputs[0].dtype
        return (cast(b, spread, dtype), cast(b, average, dtype)) if with_mean else (cast(b, spread, dtype),)

    return rewrite


def extremum_rewrite(value: Callable[..., object], position: Callable[..., object]) -> Callable[..., Rewritten]:
    """The rewrite of `max.dim` or `min.dim`: the extremum, and where it is first."""

    def rewrite(b: GraphBuilder, outputs: Outputs, *, self: Value, dim: int, keepdim: bool = False) -> Rewritten:
        if self.type.dtype is torch.bool or self.type.numel == 0:
            return None
        return b.call(value, self, (dim,), keepdim), b.call(position, self, dim, keepdim)

    return rewrite


def aminmax(
    b: GraphBuilder, outputs: Outputs, *, self: Value, dim: int | None = None, keepdim: bool = False
) -> Rewritten:
    if self.type.dtype is torch.bool or self.type.numel == 0:
        return None
    dims = _dims(self, dim)
    return b.call(aten.amin.default, self, dims, keepdim), b.call(aten.amax.default, self, dims, keepdim)


def logsumexp(b: GraphBuilder, outputs: Outputs, *, self: Value, dim: Dims, keepdim: bool = False) -> Rewritten:
    """Shifted by the maximum where that is finite; every step rounds to the input's dtype, as ATen's steps do."""
    if self.type.numel == 0:
        return None
    x = cast(b, self, outputs[0].dtype)
    dims = _dims(x, dim)
    largest = b.call(aten.amax.default, x, dims, True)
    infinite = b.call(aten.eq.Scalar, b.call(aten.abs.default, largest), math.inf)
    shift = b.call(aten.masked_fill.Scalar, largest, infinite, 0)
    exponential = b.call(aten.exp.default, b.call(aten.sub.Tensor, x, shift))
    total = b.call(aten.log.default, b.call(aten.sum.dim_IntList, exponential, dims, keepdim))
    if not keepdim:
        shift = b.call(aten.view.default, shift, total.type.shape)
    return (b.call(aten.add.Tensor, total, shift),)


def vector_norm(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    self: Value,
    ord: float | None,
    dim: Dims,
    keepdim: bool,
    dtype: torch.dtype | None,
) -> Rewritten:
    """Orders 0, 1, 2 and infinity; other orders stay library calls."""
    if self.type.numel == 0:
        return None
    dims = _dims(self, dim)
    x = widen(b, self if dtype is None else cast(b, self, dtype))
    magnitude = b.call(aten.abs.default, x)
    if ord is None or ord == 2:
        total = b.call(aten.sum.dim_IntList, b.call(aten.mul.Tensor, x, x), dims, keepdim)
        norm = b.call(aten.sqrt.default, total)
    elif ord == 1:
        norm = b.call(aten.sum.dim_IntList, magnitude, dims, keepdim)
    elif ord == 0:
        present = cast(b, b.call(aten.ne.Scalar, x, 0), x.type.dtype)
        norm = b.call(aten.sum.dim_IntList, present, dims, keepdim)
    elif ord == math.inf:
        norm = b.call(aten.amax.default, magnitude, dims, keepdim)
    elif ord == -math.inf:
        norm = b.call(aten.amin.default, magnitude, dims, keepdim)
    else:
        return None
    return (cast(b, norm, outputs[0].dtype),)


def norm(
    b: GraphBuilder, outputs: Outputs, *, self: Value, p: float | None, dim: Dims = None, keepdim: bool = False
) -> Rewritten:
    return vector_norm(b, outputs, self=self, ord=p, dim=dim, keepdim=keepdim, dtype=None)


def count_nonzero(b: GraphBuilder, outputs: Outputs, *, self: Value, dim: Dims = None) -> Rewritten:
    present = b.call(aten.ne.Scalar, self, 0)
    return (b.call(aten.sum.dim_IntList, present, _dims(self, dim), False),)


def nansum(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    self: Value,
    dim: Dims = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Rewritten:
    known = b.call(aten.masked_fill.Scalar, self, b.call(aten.isnan.default, self), 0)
    x = cast(b, known, compute_dtype(outputs[0].dtype))
    total = b.call(aten.sum.dim_IntList, x, _dims(self, dim), keepdim)
    return (cast(b, total, outputs[0].dtype),)


ROWS: Final[Mapping[str, OpRow]] = rewrites(
    {
        "mean.default": mean,
        "mean.dim": mean,
        "var.correction": variance_rewrite(root=False, with_mean=False),
        "std.correction": variance_rewrite(root=True, with_mean=False),
        "var_mean.correction": variance_rewrite(root=False, with_mean=True),
        "std_mean.correction": variance_rewrite(root=True, with_mean=True),
        "max.dim": extremum_rewrite(aten.amax.default, aten.argmax.default),
        "min.dim": extremum_rewrite(aten.amin.default, aten.argmin.default),
        "aminmax.default": aminmax,
        "logsumexp.default": logsumexp,
        "linalg_vector_norm.default": vector_norm,
        "norm.ScalarOpt_dim": norm,
        "norm.Scalar": norm,
        "count_nonzero.default": count_nonzero,
        "count_nonzero.dim_IntList": count_nonzero,
        "nansum.default": nansum,
    }
)
