"""Choices of sizes by which code that depends on sizes is probed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

__all__ = ["leg_points", "probe_points"]

PROBES: Final = 4
LEGS: Final = 5


def probe_points(typical: Sequence[int], avoid: Collection[int]) -> tuple[tuple[int, ...], ...]:
    """Points near `typical`, of primes that differ from each other and from the numbers in `avoid`."""
    columns: list[list[int]] = []
    taken = set(avoid)
    for size in typical:
        column: list[int] = []
        for prime in _primes_from(max(size, 17)):
            if prime not in taken:
                column.append(prime)
                taken.add(prime)
                if len(column) == PROBES:
                    break
        columns.append(column)
    return tuple(zip(*columns, strict=True))


def leg_points(
    sizes: Sequence[int], lowest: Sequence[int], allowed: Callable[[tuple[int, ...]], bool]
) -> tuple[tuple[int, ...], ...] | None:
    """`sizes`, `lowest` when it can be, and further points around, from `lowest` on, that `allowed` accepts; None when
    there are too few. No coordinate repeats but within `lowest`. When that is not accepted, each coordinate takes its
    lowest number in a point of its own."""
    points = [tuple(sizes)]
    taken = set(sizes)
    for target in (0.67, 0.0, 0.34, 1.0, 1.5, 2.0, 0.5, 0.84):
        for attempt in range(4):
            point: list[int] = []
            for size, least in zip(sizes, lowest, strict=True):
                wanted = max(round(size * target), least) + 3 * attempt
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
