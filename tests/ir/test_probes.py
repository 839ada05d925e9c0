"""Choices of sizes tell apart what depends on one size from what depends on another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dsjit.ir.polynomial import Polynomial, Quotient
from dsjit.ir.probes import leg_points, probe_points

TYPICAL = [(19,), (19, 7, 6), (5, 5, 5), (64, 65), (2, 3, 4, 5), (128, 17, 18, 768)]


def affine_forms(points: tuple[tuple[int, ...], ...]) -> list[tuple[tuple[int, ...], ...]]:
    """Up to three coordinates of which one is an affine form of the others."""
    columns = list(zip(*points, strict=True))
    ones = (1,) * len(points)
    chosen = [each for count in (1, 2, 3) for each in itertools.combinations(columns, count)]
    return [each for each in chosen if np.linalg.matrix_rank(np.array([ones, *each])) < 1 + len(each)]


@pytest.mark.parametrize("typical", TYPICAL, ids=str)
def test_no_size_is_an_affine_form_of_others_at_the_points_that_code_is_probed_at(typical: tuple[int, ...]) -> None:
    points = probe_points(typical, avoid=(23, 2))
    assert not affine_forms(points)
    assert len({size for point in points for size in point} | {23, 2}) == 4 * len(typical) + 2


@pytest.mark.parametrize("typical", TYPICAL, ids=str)
def test_no_size_is_an_affine_form_of_others_in_the_legs_of_a_rehearsal(typical: tuple[int, ...]) -> None:
    points = leg_points(typical, (2,) * len(typical), lambda point: True)
    assert points is not None
    assert points[0] == typical
    assert not affine_forms(points)


def test_points_that_are_not_allowed_are_left_out() -> None:
    points = leg_points((8, 6), (2, 2), lambda point: point[0] > 5)
    assert points is not None
    assert all(first > 5 for first, _ in points)


@pytest.mark.parametrize("typical", [sizes for sizes in TYPICAL if len(sizes) > 1], ids=str)
def test_in_one_leg_all_sizes_are_in_the_opposite_order(typical: tuple[int, ...]) -> None:
    points = leg_points(typical, (2,) * len(typical), lambda point: True)
    assert points is not None
    for one, other in itertools.combinations(range(len(typical)), 2):
        signs = {(point[one] > point[other]) - (point[one] < point[other]) for point in points[1:]}
        assert {-1, 1} <= signs


def test_an_order_that_is_not_allowed_is_kept() -> None:
    points = leg_points((8, 16), (2, 2), lambda point: point[0] <= point[1])
    assert points is not None
    assert all(first <= second for first, second in points)


def test_the_order_is_kept_when_asked() -> None:
    points = leg_points((8, 16), (2, 2), lambda point: True, turned=False)
    assert points is not None
    assert all(first <= second for first, second in points)


@pytest.mark.parametrize(("divisor", "more"), [(2, 0), (2, 1), (3, 0), (3, 2), (8, 7)])
def test_probes_of_a_divided_size_keep_what_a_quotient_is_bounded_by(divisor: int, more: int) -> None:
    size = Polynomial((((1,), 1),))
    quotient = Quotient(Polynomial((((1,), 1), ((0,), more))) if more else size, divisor)
    points = probe_points((16,), [0, 1, divisor], (size, Polynomial((((0, 1), 1),), (quotient,))))
    assert points is not None
    found = [(point[0], quotient.at(point)) for point in points]
    honest = [(value + more) // divisor == part for value, part in found]
    assert honest[0] and all(honest[::2])
    assert all(honest) or divisor == 2
    assert all(divisor * part != value for value, part in found)
