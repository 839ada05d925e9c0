"""Affine index forms over the axes of a loop domain, and the splits that keep reshapes affine.

A tensor value inside a fused group is read at an *index map*: one `Affine` per dimension, over integer axis ids.
A reshape in the way would need division and modulo; instead the axis that straddles a dimension's boundary is
split in two (`a -> a_hi * f + a_lo`), after which every index is affine again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Affine", "IndexMap", "NotAffine", "Split", "digits", "linearize", "substitute"]


@dataclass(frozen=True, slots=True)
class Affine:
    """`offset + sum(coefficient * axis)`; terms are sorted by axis id and no coefficient is 0."""

    offset: int = 0
    terms: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def axis(axis: int) -> Affine:
        return Affine(0, ((axis, 1),))

    @staticmethod
    def of(offset: int, coefficients: Mapping[int, int]) -> Affine:
        return Affine(offset, tuple(sorted((a, c) for a, c in coefficients.items() if c)))

    def plus(self, other: Affine) -> Affine:
        if not self.terms and not other.terms:
            return Affine(self.offset + other.offset)
        coefficients = dict(self.terms)
        for axis, coefficient in other.terms:
            coefficients[axis] = coefficients.get(axis, 0) + coefficient
        return Affine.of(self.offset + other.offset, coefficients)

    def times(self, factor: int) -> Affine:
        if factor == 1:
            return self
        if factor == 0:
            return Affine()
        return Affine(self.offset * factor, tuple((a, c * factor) for a, c in self.terms))

    def shifted(self, offset: int) -> Affine:
        return Affine(self.offset + offset, self.terms) if offset else self

    def coefficient(self, axis: int) -> int:
        for name, coefficient in self.terms:
            if name == axis:
                return coefficient
        return 0

    def bounds(self, sizes: Mapping[int, int]) -> tuple[int, int]:
        """The smallest and the largest value over the domain (sizes of 0 count as 1)."""
        low = high = self.offset
        for axis, coefficient in self.terms:
            reach = coefficient * (max(sizes[axis], 1) - 1)
            if reach < 0:
                low += reach
            else:
                high += reach
        return low, high


IndexMap = tuple[Affine, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Replace `axis` by `high * factor + low`, with `low` running over `factor`."""

    axis: int
    factor: int


class NotAffine(Exception):
    """The index cannot be written in affine form; `split`, when given, would help."""

    def __init__(self, split: Split | None = None) -> None:
        super().__init__(split)
        self.split = split


def substitute(form: Affine, axis: int, replacement: Affine) -> Affine:
    """`form` with `axis` replaced by an affine form."""
    coefficient = form.coefficient(axis)
    if not coefficient:
        return form
    rest = Affine(form.offset, tuple((a, c) for a, c in form.terms if a != axis))
    return rest.plus(replacement.times(coefficient))


def linearize(index: Iterable[Affine], weights: Iterable[int]) -> Affine:
    """`sum(index[d] * weights[d])`: the address of an element in a buffer with these strides."""
    offset = 0
    coefficients: dict[int, int] = {}
    for form, weight in zip(index, weights, strict=True):
        if weight:
            offset += form.offset * weight
            for axis, coefficient in form.terms:
                coefficients[axis] = coefficients.get(axis, 0) + coefficient * weight
    return Affine.of(offset, coefficients)


def digits(form: Affine, shape: tuple[int, ...], sizes: Mapping[int, int]) -> IndexMap:
    """Write a linear index into a row-major `shape` as one affine index per dimension.

    Raises NotAffine, with the axis split that would make it possible when one would.
    """
    if len(shape) == 1:
        return (form,)
    out: list[Affine] = []
    rest = form
    suffix = 1
    for size in shape[1:]:
        suffix *= size
    for size in shape[1:]:
        high, rest = _divide(rest, suffix, sizes)
        out.append(high)
        suffix //= size
    out.append(rest)
    return tuple(out)


def _divide(form: Affine, divisor: int, sizes: Mapping[int, int]) -> tuple[Affine, Affine]:
    """(quotient, remainder) of a non-negative affine form by `divisor`, both affine; raises NotAffine."""
    if divisor == 1:
        return form, Affine()
    high: dict[int, int] = {}
    low: dict[int, int] = {}
    reach = form.offset % divisor
    straddling: tuple[int, int] | None = None
    for axis, coefficient in form.terms:
        if coefficient % divisor == 0:
            high[axis] = coefficient // divisor
        else:
            if coefficient < 0:
                raise NotAffine
            low[axis] = coefficient
            extent = coefficient * (sizes[axis] - 1)
            reach += extent
            if extent >= divisor:
                straddling = (axis, coefficient)
    if reach >= divisor:
        if straddling is not None:
            axis, coefficient = straddling
            factor, remainder = divmod(divisor, coefficient)
            if remainder == 0 and factor > 1 and sizes[axis] % factor == 0:
                raise NotAffine(Split(axis, factor))
        raise NotAffine
    return Affine.of(form.offset // divisor, high), Affine.of(form.offset % divisor, low)
