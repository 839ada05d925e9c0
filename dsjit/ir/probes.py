"""Choices of sizes by which code that depends on sizes is probed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np

from dsjit.ir.polynomial import FreePoint, Polynomial, Quotient, quotients_of

__all__ = ["LOWEST", "leg_points", "probe_points"]

PROBES: Final = 4
LEGS: Final = 5

LOWEST: Final = 17


def probe_points(
    typical: Sequence[int], avoid: Collection[int], sizes: Sequence[Polynomial] = (), lowest: int = LOWEST
) -> tuple[tuple[int, ...], ...] | None:
    """Points near `typical`, of primes that differ from each other and from the numbers in `avoid`. No coordinate is an
    affine form of two others, as 53, 59, 61, 67 is of 23, 29, 31, 37: what is found at such points is ambiguous.

    lowest: of the numbers, where `typical` is less.
    sizes: what is computed from the sizes. Where something is divided there, the points are others near; None when
    there are none at which all of them differ.
    """
    quotients = quotients_of(sizes)
    count = PROBES + bool(quotients)
    columns: list[list[int]] = []
    taken = set(avoid)
    for size in typical:
        column: list[int] = []
        for prime in _primes_from(max(size, lowest)):
            if prime not in taken and (len(column) < PROBES - 1 or _tells_apart([*column, prime], columns)):
                column.append(prime)
                taken.add(prime)
                if len(column) == count:
                    break
        columns.append(column)
    points = list(zip(*columns, strict=True))
    return tuple(points) if not quotients else _divided_points(points, avoid, sizes, quotients)


def _divided_points(
    points: Sequence[tuple[int, ...]],
    avoid: Collection[int],
    sizes: Sequence[Polynomial],
    quotients: Sequence[Quotient],
) -> tuple[tuple[int, ...], ...] | None:
    """Points near these at which all `sizes` differ, and no quotient is met twice."""
    divided = frozenset().union(*[quotient.dividend.variables for quotient in quotients])
    found: list[FreePoint] = []
    taken = set(avoid)
    for number, point in enumerate(points):
        for small, shift in itertools.product((0, _SMALL), range(_FARTHEST)):
            sizes_there = [size + shift * (place in divided) for place, size in enumerate(point)]
            moved = _free_point(sizes_there, quotients, number)
            if moved is None or not taken.isdisjoint(moved):
                continue
            values = {size.at(moved) for size in sizes}
            fresh = all(_is_fresh(quotient, moved, found) and not _divides(quotient, moved) for quotient in quotients)
            known = avoid if not small else [each for each in avoid if each > small]
            apart = fresh and len(values) == len(set(sizes)) and values.isdisjoint(known)
            last = number == len(points) - 1
            if apart and (not last or _are_independent([*found, moved], quotients)):
                found.append(moved)
                taken.update(moved)
                break
        else:
            return None
    return tuple(found)


def _are_independent(points: Sequence[FreePoint], quotients: Sequence[Quotient]) -> bool:
    """Whether no size or quotient is an affine form of two others."""
    columns = [list(column) for column in zip(*points, strict=True)]
    columns += [[each.at(point) for point in points] for each in quotients if each.remainder is None]
    return all(_tells_apart(column, columns[:place]) for place, column in enumerate(columns))


def _is_fresh(quotient: Quotient, point: FreePoint, former: Sequence[FreePoint]) -> bool:
    """Whether it is another one than at the former points, with another remainder than at the last of them."""
    if any(quotient.at(point) == quotient.at(each) for each in former):
        return False
    return not former or quotient.remainder is not None or _rest(quotient, point) != _rest(quotient, former[-1])


def _divides(quotient: Quotient, point: FreePoint) -> bool:
    """Whether so many parts are a size, where they are none in general: rows of steps would be one long row then."""
    return quotient.remainder is None and quotient.divisor * quotient.at(point) in point


def _rest(quotient: Quotient, point: FreePoint) -> int:
    return quotient.dividend.at(point) - quotient.divisor * quotient.at(point)


def _free_point(sizes: Sequence[int], quotients: Sequence[Quotient], number: int) -> FreePoint | None:
    """These sizes, with their quotients; None where one does not leave the remainder that it must.

    Halves leave no two remainders by which they could be told from other rules: at every other point, by its `number`,
    they are one less than they are. At the others they are what they are, so that no bound is taken for one that is
    always kept.
    """
    point = FreePoint(sizes)
    point.quotients = chosen = {}
    for quotient in quotients:
        value, divisor = quotient.dividend.at(point), quotient.divisor
        remainder = value % divisor
        if quotient.remainder not in (None, remainder):
            return None
        if quotient.remainder is None and divisor == 2 and number % 2:
            remainder += divisor
        chosen[quotient] = (value - remainder) // divisor
    return point


def _tells_apart(column: Sequence[int], others: Sequence[Sequence[int]]) -> bool:
    """Whether no affine form of one or two of `others` has the values `column`, nor any of these one of it."""
    ones = [1] * len(column)
    beside = [other[: len(column)] for other in others]  # those are whole already
    for count in range(min(2, len(others)) + 1):
        for chosen in itertools.combinations(beside, count):
            if np.linalg.matrix_rank(np.array([ones, column, *chosen], np.float64)) < 2 + count:
                return False
    return True


def leg_points(
    sizes: Sequence[int],
    lowest: Sequence[int],
    allowed: Callable[[tuple[int, ...]], bool],
    divisors: Mapping[int, int] = MappingProxyType({}),
    turned: bool = True,
) -> tuple[tuple[int, ...], ...] | None:
    """`sizes`, `lowest` when it can be, and further points around, from `lowest` on, that `allowed` accepts; None when
    there are too few. No coordinate repeats but within `lowest`, and none is an affine form of two others. When
    `lowest` is not accepted, each coordinate takes its lowest number in a point of its own.

    divisors: by the number of a size, what it is divided by: there are more points then, with other quotients.
    turned: at one point, if it is accepted, what is less than another size elsewhere is more.
    """
    for stretch in range(4):
        points = _leg_points(sizes, lowest, allowed, divisors, turned, stretch)
        if points is None:
            return None
        columns = list(zip(*points, strict=True))
        if all(_tells_apart(column, columns[:place]) for place, column in enumerate(columns)):
            return points
    return None


def _leg_points(
    sizes: Sequence[int],
    lowest: Sequence[int],
    allowed: Callable[[tuple[int, ...]], bool],
    divisors: Mapping[int, int],
    turned: bool,
    stretch: int,
) -> tuple[tuple[int, ...], ...] | None:
    """stretch: how far coordinates are moved apart, that would follow each other at all points."""
    points = [tuple(sizes)]
    taken = set(sizes)
    count = LEGS + 2 * bool(divisors)
    for number, target in enumerate((0.67, 0.0, 0.34, 1.0, 1.5, 2.0, 0.5, 0.84)):
        if number == _BEFORE_TURNED and turned and len(sizes) > 1:
            _add_turned(points, taken, lowest, allowed, stretch)
        for attempt in _ATTEMPTS:
            point: list[int] = []
            for place, (size, least) in enumerate(zip(sizes, lowest, strict=True)):
                wanted = max(round(size * target), least) + attempt
                if place in divisors:
                    # Steps that are no multiples of another divisor, either.
                    wanted = least + (number + 1) * (divisors[place] + 1) + max(number - 2, 0) + attempt
                wanted += stretch * place * place * (len(points) ** 2 % 7)
                point.append(_near(wanted, taken | set(point)) if target or attempt else least)
            if tuple(point) not in points and allowed(tuple(point)):
                points.append(tuple(point))
                taken.update(point)
                break
            if not target and not attempt:
                break
        if not target and tuple(lowest) not in points:
            _add_lowest_apart(points, taken, lowest, allowed)
        if len(points) == count:
            return tuple(points)
    return None


_ATTEMPTS: Final = (0, 3, 6, 9, *sorted(set(range(1, 65)) - {3, 6, 9}))
"""What is added to a point until it is allowed: to get beyond a limit, and to every remainder."""

_BEFORE_TURNED: Final = 2
"""Points around the sizes that come first."""

_SMALLEST_TURNED: Final = 2
_STEP_TURNED: Final = 4
"""Rules for two sizes of which one is less than the other may agree where they are next to each other."""

_FARTHEST: Final = 512
"""How far sizes that are divided are from those that were asked for."""

_SMALL: Final = 16
"""Remainders are small numbers: where need be, they are among those that are avoided."""


def _add_turned(
    points: list[tuple[int, ...]],
    taken: set[int],
    lowest: Sequence[int],
    allowed: Callable[[tuple[int, ...]], bool],
    stretch: int,
) -> None:
    """Add a point, near the lowest sizes, in which the sizes are in the opposite order."""
    for attempt in _ATTEMPTS:
        point, size = [0] * len(lowest), _SMALLEST_TURNED + attempt
        for place in sorted(range(len(lowest)), key=lambda place: (points[0][place], place), reverse=True):
            point[place] = size = _near(max(size + _STEP_TURNED + stretch * place, lowest[place]), taken)
        if allowed(tuple(point)):
            points.append(tuple(point))
            taken.update(point)
            return


def _add_lowest_apart(
    points: list[tuple[int, ...]],
    taken: set[int],
    lowest: Sequence[int],
    allowed: Callable[[tuple[int, ...]], bool],
) -> None:
    """Add points in which one coordinate is the lowest, where none of `points` has that."""
    for place, least in enumerate(lowest):
        if len(points) < LEGS and all(point[place] != least for point in points):
            point = [_near(size + 1, taken | {least}) for size in points[0]]
            point[place] = least
            if allowed(tuple(point)):
                points.append(tuple(point))
                taken.update(point)


def _near(size: int, taken: Collection[int]) -> int:
    """The smallest number from `size` on that is not taken."""
    while size in taken:
        size += 1
    return size


def _primes_from(start: int) -> Iterator[int]:
    number = start
    while True:
        if all(number % factor for factor in range(2, int(number**0.5) + 1)):
            yield number
        number += 1
