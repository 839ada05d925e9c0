"""With which outcomes of a look Python leaves a `for` loop, and which variables are still read then."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from dsjit.trace.looks.liveness import dead_before
from dsjit.trace.looks.look_sites import look_site


class Looked:
    """In place of a tensor: notes by outcome how many loops it leaves, how many it keeps, and what is dead then."""

    def __init__(self) -> None:
        self.exits: dict[bool, tuple[int, int, set[str]]] = {}

    def _note(self) -> bool:
        frame = sys._getframe(2)
        site = look_site(frame)
        assert site is not None
        for outcome, way in site.exits.items():
            self.exits[outcome] = len(way.left), len(way.kept), set(dead_before(frame.f_code, way.offset))
        return True

    def __bool__(self) -> bool:
        return self._note()

    def __lt__(self, other: object) -> bool:
        return self._note()


def breaks(t: Any, xs: tuple[int, ...]) -> Any:
    y = 0
    for x in xs:
        y = x + 1
        if t:
            break
    return y


def goes_on(t: Any, xs: tuple[int, ...]) -> Any:
    for x in xs:
        if not t:
            continue
        return x
    return None


def returns_an_expression(t: Any, xs: tuple[int, ...]) -> Any:
    for number, x in enumerate(xs):
        if t < 3.0:
            return x, [number]
    return None


def breaks_the_inner_loop(t: Any, xs: tuple[int, ...]) -> Any:
    total = 0
    for x in xs:
        for y in xs:
            total += y
            if bool(t):
                break
        total += x
    return total


def returns_from_both(t: Any, xs: tuple[int, ...]) -> Any:
    for x in xs:
        for y in xs:
            if t:
                return x + y
    return None


def has_an_else(t: Any, xs: tuple[int, ...]) -> Any:
    y = 1
    for x in xs:
        y = x
        if t:
            break
    else:
        return 0
    return y


def stays(t: Any, xs: tuple[int, ...]) -> Any:
    y = 0
    for x in xs:
        if t:
            y += x
    return y


def may_come_back(t: Any, xs: tuple[int, ...]) -> Any:
    y = 1
    for x in xs:
        try:
            y = x
            if t:
                break
        except ValueError:
            continue
    return y


@pytest.mark.parametrize(
    ("function", "exits"),
    [
        (breaks, {True: (1, 0, {"t", "xs", "x"})}),
        (goes_on, {True: (1, 0, {"t", "xs"})}),
        (returns_an_expression, {True: (1, 0, {"t", "xs"})}),
        (breaks_the_inner_loop, {True: (1, 1, {"y"})}),
        (returns_from_both, {True: (2, 0, {"t", "xs"})}),
        (has_an_else, {True: (1, 0, {"t", "xs", "x"})}),
        (stays, {}),
        (may_come_back, {}),
    ],
)
def test_outcomes_that_leave_a_loop(function: Callable[[Any, tuple[int, ...]], Any], exits: Any) -> None:
    looked = Looked()
    function(looked, (1, 2))
    assert looked.exits == exits
