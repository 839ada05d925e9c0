"""Sizes as functions of other sizes: integer polynomials, and finding them from values at a few points.

A tracer that runs code on sizes of its choice sees every size that the code computes as a row of numbers, one for each
choice. `PolynomialFit` finds the polynomial of few terms that gives these numbers. Two different polynomials agree at
few of all points (Schwartz 1980, Zippel 1979), so with points that have nothing in common (large or prime numbers) and
more points than terms, the one that is found is the one that was computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Final

__all__ = ["Polynomial", "PolynomialFit"]

MAX_DEGREE: Final = 4
"""Of a term: bytes of attention scores are batch * heads * length * length."""

MAX_TERMS: Final = 3

_CANDIDATES: Final = {1: None, 2: 70, 3: 12}
"""Of how many monomials (in the order of their degrees) a sum of so many terms may be."""


@dataclass(frozen=True, slots=True)
class Polynomial:
    """The sum of `factor * s0**exponents[0] * s1**exponents[1] * ...`; no factor is 0, and exponents differ."""

    terms: tuple[tuple[tuple[int, ...], int], ...]

    def at(self, sizes: Sequence[int]) -> int:
        """The value where s0, s1, ... are `sizes`."""
        return sum(factor * _monomial(exponents, sizes) for exponents, factor in self.terms)

    @property
    def variables(self) -> frozenset[int]:
        """The numbers of the sizes that it depends on."""
        return frozenset([number for exponents, _ in self.terms for number, power in enumerate(exponents) if power])

    @property
    def is_variable(self) -> bool:
        """Whether it is one of the sizes itself."""
        return len(self.terms) == 1 and self.terms[0][1] == 1 and sum(self.terms[0][0]) == 1

    def only(self, variables: Sequence[int]) -> Polynomial:
        """The same in other names: s0 is what was the size of number variables[0], and so on; it has no others."""
        return Polynomial(
            tuple([(tuple([exponents[number] for number in variables]), factor) for exponents, factor in self.terms])
        )

    def __str__(self) -> str:
        """A Python expression in s0, s1, ..."""
        parts = []
        for exponents, factor in self.terms:
            names = [f"s{number}" for number, power in enumerate(exponents) for _ in range(power)]
            parts.append("*".join([str(factor), *names] if factor != 1 or not names else names))
        return " + ".join(parts).replace("+ -", "- ") if parts else "0"


def _monomial(exponents: Sequence[int], sizes: Sequence[int]) -> int:
    return prod([size**power for size, power in zip(sizes, exponents, strict=True)])


def _exponents_of_degree(count: int, degree: int) -> Iterator[tuple[int, ...]]:
    """The exponents of all monomials of one degree in `count` sizes."""
    for chosen in itertools.combinations_with_replacement(range(count), degree):
        yield tuple([chosen.count(number) for number in range(count)])


@dataclass(slots=True)
class PolynomialFit:
    """Finds polynomials from their values at `points`, which all have as many coordinates. At least 3 points."""

    points: tuple[tuple[int, ...], ...]
    _monomials: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(init=False)
    _known: dict[tuple[int, ...], Polynomial | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.points[0])
        ordered = [
            exponents for degree in range(MAX_DEGREE + 1) for exponents in sorted(_exponents_of_degree(count, degree))
        ]
        self._monomials = [
            (exponents, tuple([_monomial(exponents, point) for point in self.points])) for exponents in ordered
        ]

    def find(self, values: tuple[int, ...]) -> Polynomial | None:
        """The polynomial of the fewest terms that has these values, or None. Two points, at least, check it."""
        if values not in self._known:
            self._known[values] = self._search(values)
        return self._known[values]

    def _search(self, values: tuple[int, ...]) -> Polynomial | None:
        if not any(values):
            return Polynomial(())
        limit = min(MAX_TERMS, len(self.points) - 2)
        for count in range(1, limit + 1):
            # Many terms explain many things: let them be simple ones.
            candidates = self._monomials[: _CANDIDATES[count]]
            for chosen in itertools.combinations(candidates, count):
                factors = _solve([row for _, row in chosen], values)
                if factors is not None and all(factors):
                    terms = zip([exponents for exponents, _ in chosen], factors, strict=True)
                    return Polynomial(tuple(reversed(list(terms))))
        return None


def _solve(rows: Sequence[Sequence[int]], values: Sequence[int]) -> list[int] | None:
    """Integers f with `sum(f[i] * rows[i]) == values` at each point, or None."""
    count = len(rows)
    if count == 1:
        factor, rest = divmod(values[0], rows[0][0])
        factors = [factor] if not rest else None
    elif count == 2:
        (a, b), (c, d) = (rows[0][:2], rows[1][:2])
        determinant = a * d - b * c
        if not determinant:
            return None
        first, rest = divmod(values[0] * d - values[1] * c, determinant)
        second, other = divmod(a * values[1] - b * values[0], determinant)
        factors = [first, second] if not rest and not other else None
    else:
        factors = _cramer([list(row[:count]) for row in rows], list(values[:count]))
    if factors is None:
        return None
    for point in range(len(values)):
        if sum(factor * row[point] for factor, row in zip(factors, rows, strict=True)) != values[point]:
            return None
    return factors


def _cramer(rows: list[list[int]], values: list[int]) -> list[int] | None:
    determinant = _determinant(rows)
    if not determinant:
        return None
    factors: list[int] = []
    for position in range(len(rows)):
        factor, rest = divmod(_determinant([*rows[:position], values, *rows[position + 1 :]]), determinant)
        if rest:
            return None
        factors.append(factor)
    return factors


def _determinant(rows: list[list[int]]) -> int:
    if len(rows) == 1:
        return rows[0][0]
    return sum(
        (-1) ** column * rows[0][column] * _determinant([row[:column] + row[column + 1 :] for row in rows[1:]])
        for column in range(len(rows))
    )
