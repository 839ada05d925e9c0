"""Choices of sizes by which code that depends on sizes is probed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

import numpy as np

__all__ = ["leg_points", "probe_points"]

PROBES: Final = 4
LEGS: Final = 5


def probe_points(typical: Sequence[int], avoid: Collection[int]) -> tuple[tuple[int, ...], ...]:
    """Points near `typical`, of primes that differ from each other and from the numbers in `avoid`. No coordinate is an
    affine form of two others, as 53, 59, 61, 67 is of 23, 29, 31, 37: what is found at such points is ambiguous."""
    columns: list[list[int]] = []
    taken = set(avoid)
    for size in typical:
        column: list[int] = []
        for prime in _primes_from(max(size, 17)):
            if prime not in taken and (len(column) < PROBES - 1 or _tells_apart([*column, prime], columns)):
                column.append(prime)
                taken.add(prime)
                if len(column) == PROBES:
                    break
        columns.append(column)
    return tuple(zip(*columns, strict=True))


def _tells_apart(column: Sequence[int], others: Sequence[Sequence[int]]) -> bool:
    """Whether no affine form of one or two of `others` has the values `column`, nor any of these one of it."""
    ones = [1] * len(column)
    for count in range(min(2, len(others)) + 1):
        for chosen in itertools.combinations(others, count):
            if np.linalg.matrix_rank(np.array([ones, column, *chosen], np.float64)) < 2 + count:
                return False
    return True


def leg_points(
    sizes: Sequence[int], lowest: Sequence[int], allowed: Callable[[tuple[int, ...]], bool]
) -> tuple[tuple[int, ...], ...] | None:
    """`sizes`, `lowest` when it can be, and further points around, from `lowest` on, that `allowed` accepts; None when
    there are too few. No coordinate repeats but within `lowest`, and none is an affine form of two others. When
    `lowest` is not accepted, each coordinate takes its lowest number in a point of its own."""
    for stretch in range(4):
        points = _leg_points(sizes, lowest, allowed, stretch)
        if points is None:
            return None
        columns = list(zip(*points, strict=True))
        if all(_tells_apart(column, columns[:place]) for place, column in enumerate(columns)):
            return points
    return None


def _leg_points(
    sizes: Sequence[int], lowest: Sequence[int], allowed: Callable[[tuple[int, ...]], bool], stretch: int
) -> tuple[tuple[int, ...], ...] | None:
    """stretch: how far coordinates are moved apart, that would follow each other at all points."""
    points = [tuple(sizes)]
    taken = set(sizes)
    for target in (0.67, 0.0, 0.34, 1.0, 1.5, 2.0, 0.5, 0.84):
        for attempt in range(4):
            point: list[int] = []
            for place, (size, least) in enumerate(zip(sizes, lowest, strict=True)):
                wanted = max(round(size * target), least) + 3 * attempt
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
        if len(points) == LEGS:
            return tuple(points)
    return None


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
