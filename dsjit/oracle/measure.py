"""How far two tensors are from each other, and both from a reference in double precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch

__all__ = ["Measure", "measure", "same_values", "ulp_distance"]

_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Measure:
    """max_ulp: the most representable numbers between an element and its counterpart (inf: NaN against a number, or
    any difference of integers and bools). differing: how many elements are not equal. worst: the index of the farthest
    one. max_abs, max_rel: |found - expected|, and over |expected|, where both are finite.

    our_error, eager_error: the largest |x - reference| of found and of expected, where all are finite; None without a
    reference. our_relative, eager_relative: the same over |reference|, where it is not 0.
    """

    max_ulp: float
    differing: int
    worst: tuple[int, ...] | None
    max_abs: float
    max_rel: float
    our_error: float | None = None
    eager_error: float | None = None
    our_relative: float | None = None
    eager_relative: float | None = None


def measure(found: torch.Tensor, expected: torch.Tensor, reference: torch.Tensor | None = None) -> Measure:
    """Compare tensors of one shape and dtype; `reference` is float64 (complex128) of that shape."""
    found, expected = _real(found), _real(expected)
    if reference is None and _same_bits(found, expected):
        return Measure(0.0, 0, None, 0.0, 0.0)
    ulps = ulp_distance(found, expected).reshape(found.shape)
    differing = int((~_equal(found, expected)).sum())
    worst = None
    if differing:
        flat = int(torch.where(_equal(found, expected), -1.0, ulps).reshape(-1).argmax())
        worst = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), found.shape))
    absolute, relative = _largest(found.double(), expected.double())
    most = float(ulps.max()) if ulps.numel() else 0.0
    if reference is None or not expected.is_floating_point():
        return Measure(most, differing, worst, absolute, relative)
    reference = _real(reference)
    ours, eagers = _largest(found.double(), reference), _largest(expected.double(), reference)
    return Measure(most, differing, worst, absolute, relative, ours[0], eagers[0], ours[1], eagers[1])


def same_values(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether dtypes, shapes and bits are equal, every NaN counting as the same."""
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    a, b = _real(a), _real(b)
    return _same_bits(a, b) or bool(_equal(a, b).all())


def ulp_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """float64: for each element, how many steps between representable numbers lie between the two; inf between a NaN
    and a number. Between integers or bools: 0 or inf. 0.0 and -0.0 are no step apart."""
    if not a.is_floating_point():
        return torch.where(a == b, 0.0, math.inf).double()
    one, other = _ordered(a), _ordered(b)
    # Of opposite signs, the difference may not fit 64 bits; it is large then, and need not be exact.
    steps = torch.where((one < 0) == (other < 0), (one - other).double(), one.double() - other.double()).abs()
    either, both = a.isnan() | b.isnan(), a.isnan() & b.isnan()
    return steps.masked_fill(either, math.inf).masked_fill(both, 0.0)


def _ordered(tensor: torch.Tensor) -> torch.Tensor:
    """The bits as integers that are ordered as the floats are."""
    if tensor.dtype.itemsize == 1:  # 8-bit floats
        tensor = tensor.half()
    kind = _INTEGERS[tensor.dtype.itemsize]
    bits = tensor.contiguous().view(kind).long()
    lowest = -(1 << (8 * kind.itemsize - 1))
    return torch.where(bits < 0, lowest - bits, bits)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = _INTEGERS[a.dtype.itemsize]
    return torch.equal(a.view(kind), b.view(kind))


def _equal(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if not a.is_floating_point():
        return a == b
    return ((a == b) & (a.signbit() == b.signbit())) | (a.isnan() & b.isnan())


def _largest(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """The largest |a - b|, and the largest |a - b| / |b|, where both are finite."""
    finite = a.isfinite() & b.isfinite()
    difference = (a - b).abs()[finite]
    if not difference.numel():
        return 0.0, 0.0
    scale = b.abs()[finite]
    nonzero = scale > 0
    relative = float((difference[nonzero] / scale[nonzero]).max()) if bool(nonzero.any()) else 0.0
    return float(difference.max()), relative


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """Plain, strided, and complex numbers as pairs."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.resolve_conj().resolve_neg()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
