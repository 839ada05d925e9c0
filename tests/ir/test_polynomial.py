"""Polynomials of sizes and of their rounded quotients are found again from values at a few points."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dsjit.ir.polynomial import Polynomial, PolynomialFit, Quotient, quotients_of
from dsjit.ir.probes import leg_points, probe_points

POINTS = ((6,), (2,), (11,), (15,), (23,))
SIZE = Polynomial((((1,), 1),))
HALF = Quotient(SIZE, 2)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda n: 3 * n * n, "3*s0*s0"),
        (lambda n: n // 2, "((s0) // 2)"),
        (lambda n: n - n // 2, "s0 - 1*((s0) // 2)"),
        (lambda n: 4 * (n // 2) + 1, "4*((s0) // 2) + 1"),
        (lambda n: n % 2, "s0 - 2*((s0) // 2)"),
    ],
)
def test_a_rule_is_found_from_its_values(function: Callable[[int], int], text: str) -> None:
    fit = PolynomialFit(POINTS, (HALF,))
    found = fit.find(tuple([function(point[0]) for point in POINTS]))
    assert str(found) == text
    assert found is not None
    assert [found.at((size,)) for size in range(2, 40)] == [function(size) for size in range(2, 40)]
    assert [eval(text, {"s0": size}) for size in range(2, 40)] == [function(size) for size in range(2, 40)]


def test_a_quotient_that_nobody_told_of_is_found_when_it_is_the_only_one() -> None:
    values = tuple([(size + 1) // 2 for (size,) in POINTS])
    assert PolynomialFit(POINTS).find(values) is None
    assert str(PolynomialFit(POINTS, rounds=True).find(values)) == "((s0 + 1) // 2)"
    even = ((4,), (6,), (10,), (16,), (20,))  # at which it is the half, too
    assert PolynomialFit(even, rounds=True).find(tuple([(size + 1) // 2 for (size,) in even])) is None


@pytest.mark.parametrize("unit", [32, 64])
@pytest.mark.parametrize("up", [True, False])
def test_multiples_of_a_unit_are_found_where_sizes_are_far_enough_apart(unit: int, up: bool) -> None:
    def rounded(size: int) -> int:
        return (size + (unit - 1) * up) // unit * unit

    far = PolynomialFit(((200,), (134,), (50,), (68,), (301,)), rounds=True)
    found = far.find(tuple([rounded(size) for (size,) in far.points]))
    assert found is not None
    assert [found.at((size,)) for size in range(2, 300)] == [rounded(size) for size in range(2, 300)]
    near = PolynomialFit(((unit + 8,), (unit - 5,), (9,), (7,), (unit - 8,)), rounds=True)
    assert near.find(tuple([rounded(size) for (size,) in near.points])) is None
    assert near.hints == {0: unit}


def test_names_and_variables_reach_into_quotients() -> None:
    inner = Quotient(Polynomial((((0, 1), 1),)), 4)
    outer = Quotient(Polynomial((((0, 0, 1), 1), ((1, 0, 0), 1)), (inner,)), 2)
    rule = Polynomial((((0, 0, 1), 5),), (outer,))
    assert rule.variables == {0, 1}
    assert quotients_of([rule]) == (inner, outer)
    assert rule.at((7, 9)) == 5 * ((9 // 4 + 7) // 2)
    assert rule.only((0, 1)) == rule
    assert str(Polynomial((((0, 1), 2),)).only((1,))) == "2*s0"
    assert not rule.is_variable


@pytest.mark.parametrize("divisor", [2, 3, 4, 8, 64])
@pytest.mark.parametrize("remainder", [None, 1])
def test_probes_tell_a_quotient_from_every_other_rule(divisor: int, remainder: int | None) -> None:
    quotient = Quotient(SIZE, divisor, remainder)
    part = Polynomial((((0, 1), 1),), (quotient,))
    rest = Polynomial((((1, 0), 1), ((0, 1), -1)), (quotient,))
    points = probe_points((6,), [0, 1, 2, 6], (SIZE, part, rest))
    assert points is not None
    fit = PolynomialFit(points, (quotient,))
    for rule in (SIZE, part, rest):
        found = fit.find(tuple([rule.at(point) for point in points]))
        assert found is not None
        served = [size for size in range(2, 300) if remainder is None or size % divisor == remainder]
        assert [found.at((size,)) for size in served] == [rule.at((size,)) for size in served]


def test_legs_of_a_divided_size_have_other_quotients_and_remainders() -> None:
    points = leg_points((6,), (2,), lambda point: True, {0: 8})
    assert points is not None
    assert len({size // 8 for (size,) in points}) >= 4
    assert len({size % 8 for (size,) in points}) >= 3


def test_legs_keep_to_a_remainder() -> None:
    points = leg_points((6,), (2,), lambda point: point[0] % 16 == 6)
    assert points is not None
    assert {size % 16 for (size,) in points} == {6}
