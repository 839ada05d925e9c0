"""Sizes as functions of other sizes: integer polynomials, and finding them from values at a few points.

A tracer that runs code on sizes of its choice sees every size that the code computes as a row of numbers, one for each
choice. `PolynomialFit` finds the polynomial of few terms that gives these numbers. Two different polynomials agree at
few of all points (Schwartz 1980, Zippel 1979), so with points that have nothing in common (large or prime numbers) and
more points than terms, the one that is found is the one that was computed.

Where code rounds (`n // 2`, `n % 8`), the rounded quotient takes part as if it were a size of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Final

__all__ = ["FreePoint", "Polynomial", "PolynomialFit", "Quotient", "quotients_of"]

MAX_DEGREE: Final = 4
"""Of a term: bytes of attention scores are batch * heads * length * length."""

MAX_TERMS: Final = 3

FEWEST_QUOTIENTS: Final = 4
"""Different ones that a quotient has to be at the points, so that no other rule gives the same."""

_DIVISORS: Final = (2, 3, 4, 8, 16)
"""What sizes may be divided by where nobody says so (the steps of slices)."""

_UNITS: Final = (8, 16, 32, 64, 128)
"""Of what sizes may be rounded to multiples (rows of a buffer that a GPU's attention fills)."""

_FEW_REMAINDERS: Final = 6
"""Divisors up to this: the legs of a rehearsal have all remainders, when it is known that a size is divided."""

_CANDIDATES: Final = {1: None, 2: 70, 3: 12}
"""Of how many monomials (in the order of their degrees) a sum of so many terms may be."""


@dataclass(frozen=True, slots=True)
class Quotient:
    """`dividend // divisor`. remainder: that of every dividend that is met; None where they differ."""

    dividend: Polynomial
    divisor: int
    remainder: int | None = None

    def at(self, sizes: Sequence[int]) -> int:
        """The value where s0, s1, ... are `sizes`."""
        if isinstance(sizes, FreePoint) and self in sizes.quotients:
            return sizes.quotients[self]
        return self.dividend.at(sizes) // self.divisor

    def __str__(self) -> str:
        """A Python expression in s0, s1, ..."""
        return f"(({self.dividend}) // {self.divisor})"


@dataclass(frozen=True, slots=True)
class Polynomial:
    """The sum of `factor * s0**exponents[0] * s1**exponents[1] * ...`; no factor is 0, and exponents differ.

    quotients: those that occur; their exponents follow those of the sizes.
    """

    terms: tuple[tuple[tuple[int, ...], int], ...]
    quotients: tuple[Quotient, ...] = ()

    def at(self, sizes: Sequence[int]) -> int:
        """The value where s0, s1, ... are `sizes`."""
        if self.quotients:
            sizes = [*sizes, *[quotient.at(sizes) for quotient in self.quotients]]
        return sum(factor * _monomial(exponents, sizes) for exponents, factor in self.terms)

    @property
    def variables(self) -> frozenset[int]:
        """The numbers of the sizes that it depends on."""
        own = [number for exponents, _ in self.terms for number, power in enumerate(self._of_sizes(exponents)) if power]
        return frozenset(own).union(*[quotient.dividend.variables for quotient in self.quotients])

    @property
    def is_variable(self) -> bool:
        """Whether it is one of the sizes itself."""
        single = len(self.terms) == 1 and self.terms[0][1] == 1 and sum(self.terms[0][0]) == 1
        return single and not self.quotients

    def only(self, variables: Sequence[int]) -> Polynomial:
        """The same in other names: s0 is what was the size of number variables[0], and so on; it has no others."""
        return Polynomial(
            tuple(
                [
                    ((*[exponents[number] for number in variables], *self._of_quotients(exponents)), factor)
                    for exponents, factor in self.terms
                ]
            ),
            tuple([Quotient(each.dividend.only(variables), each.divisor, each.remainder) for each in self.quotients]),
        )

    def divided_by(self, divisor: int) -> bool:
        """Whether every value is a multiple of `divisor`, as each term is."""
        return all(factor % divisor == 0 for _, factor in self.terms)

    def __str__(self) -> str:
        """A Python expression in s0, s1, ..."""
        parts = []
        for exponents, factor in self.terms:
            names = [f"s{number}" for number, power in enumerate(self._of_sizes(exponents)) for _ in range(power)]
            for quotient, power in zip(self.quotients, self._of_quotients(exponents), strict=True):
                names += [str(quotient)] * power
            parts.append("*".join([str(factor), *names] if factor != 1 or not names else names))
        return " + ".join(parts).replace("+ -", "- ") if parts else "0"

    def _of_sizes(self, exponents: tuple[int, ...]) -> tuple[int, ...]:
        return exponents[: len(exponents) - len(self.quotients)]

    def _of_quotients(self, exponents: tuple[int, ...]) -> tuple[int, ...]:
        return exponents[len(exponents) - len(self.quotients) :]


class FreePoint(tuple[int, ...]):
    """A choice of sizes, and of what quotients are there: others, it may be, than they are."""

    quotients: Mapping[Quotient, int]


def quotients_of(polynomials: Iterable[Polynomial]) -> tuple[Quotient, ...]:
    """The quotients in these polynomials, and in what is divided there; what another one divides comes first."""
    found: dict[Quotient, None] = {}
    for polynomial in polynomials:
        for quotient in polynomial.quotients:
            found.update(dict.fromkeys(quotients_of([quotient.dividend])))
            found[quotient] = None
    return tuple(found)


def _monomial(exponents: Sequence[int], sizes: Sequence[int]) -> int:
    return prod([size**power for size, power in zip(sizes, exponents, strict=True)])


def _exponents_of_degree(count: int, degree: int) -> Iterator[tuple[int, ...]]:
    """The exponents of all monomials of one degree in `count` sizes."""
    for chosen in itertools.combinations_with_replacement(range(count), degree):
        yield tuple([chosen.count(number) for number in range(count)])


@dataclass(slots=True)
class PolynomialFit:
    """Finds polynomials from their values at `points`, which all have as many coordinates. At least 3 points.

    quotients: those that may take part. rounds: whether others may that nobody knows of so far.
    hints: what sizes, by their numbers, seem to be divided by: points with other quotients and remainders would tell.
    guessed: quotients that nobody told of, of which the points do not have every remainder. Two such quotients of one
        size may be an affine form of each other at these points, so that they are only ever taken for themselves.
    """

    points: tuple[tuple[int, ...], ...]
    quotients: tuple[Quotient, ...] = ()
    rounds: bool = False
    hints: dict[int, int] = field(default_factory=dict)
    guessed: frozenset[Quotient] = frozenset()
    _monomials: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(init=False)
    _told: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(init=False)
    _known: dict[tuple[int, ...], Polynomial | None] = field(init=False)

    def __post_init__(self) -> None:
        self._known = {}
        points = [(*point, *[quotient.at(point) for quotient in self.quotients]) for point in self.points]
        ordered = [
            exponents
            for degree in range(MAX_DEGREE + 1)
            for exponents in sorted(_exponents_of_degree(len(points[0]), degree))
        ]
        self._monomials = [
            (exponents, tuple([_monomial(exponents, point) for point in points])) for exponents in ordered
        ]
        first = len(self.points[0])
        guessed = [first + number for number, quotient in enumerate(self.quotients) if quotient in self.guessed]
        self._told = [each for each in self._monomials if not any(each[0][number] for number in guessed)]

    def admit(self, quotient: Quotient) -> None:
        """From now on, this one may take part, too."""
        if quotient not in self.quotients:
            self.quotients = (*self.quotients, quotient)
            self.__post_init__()

    def find(self, values: tuple[int, ...]) -> Polynomial | None:
        """The polynomial of the fewest terms that has these values, or None. Two points, at least, check it."""
        if values not in self._known:
            found = self._search(values)
            if found is None and self.rounds:
                quotient = self._rounded(values)
                if quotient is not None:
                    if not self._has_all_remainders(quotient):
                        self.guessed |= {quotient}
                    self.admit(quotient)
                    found = self._search(values)
            self._known[values] = found
        return self._known[values]

    def is_telling(self, quotient: Quotient) -> bool:
        """Whether the points tell this quotient from other rules, but for its remainder."""
        return len({quotient.at(point) for point in self.points}) >= FEWEST_QUOTIENTS

    def lacks_remainders(self, quotient: Quotient) -> bool:
        """Whether the points have not every remainder, where they could: code of torch's own may round in another way,
        which only differs at some of them."""
        few = quotient.remainder is None and quotient.divisor <= _FEW_REMAINDERS
        return few and not self._has_all_remainders(quotient)

    def _rounded(self, values: tuple[int, ...]) -> Quotient | None:
        """The one quotient of a size, or of a size and a little more, that has these values, or is how many times a
        unit they are."""
        count = len(self.points[0])
        ways = [(divisor, more, 1) for divisor in _DIVISORS for more in range(divisor)]
        ways += [(unit, more, unit) for unit in _UNITS for more in (0, unit - 1)]
        found: list[Quotient] = []
        for number, (divisor, more, unit) in itertools.product(range(count), ways):
            own = tuple([int(each == number) for each in range(count)])
            dividend = Polynomial(((own, 1), ((0,) * count, more)) if more else ((own, 1),))
            quotient = Quotient(dividend, divisor)
            if values == tuple([unit * quotient.at(point) for point in self.points]):
                found.append(quotient)
                if unit > 1 and not self.is_telling(quotient):
                    self.hints[number] = max(unit, self.hints.get(number, 0))
        if len(found) != 1 or not self.is_telling(found[0]):
            return None
        (quotient,) = found
        if self.lacks_remainders(quotient):
            (number,) = quotient.dividend.variables
            self.hints[number] = max(quotient.divisor, self.hints.get(number, 0))
            return None
        return quotient if len(self._remainders(quotient)) > 1 else None

    def _remainders(self, quotient: Quotient) -> set[int]:
        return {quotient.dividend.at(point) % quotient.divisor for point in self.points}

    def _has_all_remainders(self, quotient: Quotient) -> bool:
        return len(self._remainders(quotient)) == quotient.divisor

    def _search(self, values: tuple[int, ...]) -> Polynomial | None:
        if not any(values):
            return Polynomial(())
        limit = min(MAX_TERMS, len(self.points) - 2)
        for count in range(1, limit + 1):
            # Many terms explain many things: let them be simple ones.
            candidates = self._monomials[: _CANDIDATES[count]] if count == 1 else self._told[: _CANDIDATES[count]]
            for chosen in itertools.combinations(candidates, count):
                factors = _solve([row for _, row in chosen], values)
                if factors is not None and all(factors):
                    terms = zip([exponents for exponents, _ in chosen], factors, strict=True)
                    return self._with_quotients(list(terms)[::-1])
        return None

    def _with_quotients(self, terms: list[tuple[tuple[int, ...], int]]) -> Polynomial:
        """The sum of these terms, with those quotients alone that occur in it."""
        first = len(self.points[0])
        used = [n for n in range(len(self.quotients)) if any(exponents[first + n] for exponents, _ in terms)]
        return Polynomial(
            tuple([((*e[:first], *[e[first + number] for number in used]), factor) for e, factor in terms]),
            tuple([self.quotients[number] for number in used]),
        )


def _solve(rows: Sequence[Sequence[int]], values: Sequence[int]) -> list[int] | None:
    """Integers f with `sum(f[i] * rows[i]) == values` at each point, or None."""
    count = len(rows)
    for places in itertools.combinations(range(len(values)), count):
        found = _solve_at([[row[place] for place in places] for row in rows], [values[place] for place in places])
        if found is not None:  # the rows are independent at these points
            factors = found or None
            break
    else:
        return None
    if factors is None:
        return None
    for point in range(len(values)):
        if sum(factor * row[point] for factor, row in zip(factors, rows, strict=True)) != values[point]:
            return None
    return factors


def _solve_at(rows: Sequence[Sequence[int]], values: Sequence[int]) -> list[int] | None:
    """The same at as many points as there are rows: empty where the factors are no integers, None where the rows depend
    on each other."""
    if len(rows) == 1:
        if not rows[0][0]:
            return None
        factor, rest = divmod(values[0], rows[0][0])
        return [factor] if not rest else []
    if len(rows) == 2:
        (a, b), (c, d) = rows
        determinant = a * d - b * c
        if not determinant:
            return None
        first, rest = divmod(values[0] * d - values[1] * c, determinant)
        second, other = divmod(a * values[1] - b * values[0], determinant)
        return [first, second] if not rest and not other else []
    return _cramer([list(row) for row in rows], list(values))


def _cramer(rows: list[list[int]], values: list[int]) -> list[int] | None:
    determinant = _determinant(rows)
    if not determinant:
        return None
    factors: list[int] = []
    for position in range(len(rows)):
        factor, rest = divmod(_determinant([*rows[:position], values, *rows[position + 1 :]]), determinant)
        if rest:
            return []
        factors.append(factor)
    return factors


def _determinant(rows: list[list[int]]) -> int:
    if len(rows) == 1:
        return rows[0][0]
    return sum(
        (-1) ** column * rows[0][column] * _determinant([row[:column] + row[column + 1 :] for row in rows[1:]])
        for column in range(len(rows))
    )
