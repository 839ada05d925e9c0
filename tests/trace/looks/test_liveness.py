"""Variables are dead where they are stored again before anything reads them."""

from __future__ import annotations

import dis
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from dsjit.trace.looks.liveness import dead_after


def stored_again(t: Any) -> Any:
    for _ in t:
        if t.here:
            y = t.a
            t = t + y
    return t


def read_after_the_loop(t: Any) -> Any:
    y = 0
    for _ in t:
        if t.here:
            y = t.a
    return t + y


def read_in_the_next_round(t: Any) -> Any:
    y = 0
    for _ in t:
        if t.here:
            t = t + y
        y = t.b
    return t


def read_on_one_way(t: Any) -> Any:
    y = t.a
    if t.here:
        return y
    y = t.b
    return t - y


def read_by_a_handler(t: Any) -> Any:
    y = t.a
    with suppress(ValueError):
        if t.here:
            y = t.b
        return t.c
    return y


def in_a_cell(t: Any) -> Any:
    y = t.a
    if t.here:
        return t
    y = 1
    return lambda: y


@pytest.mark.parametrize(
    ("function", "dead"),
    [
        (stored_again, {"y", "_"}),
        (read_after_the_loop, {"_"}),
        (read_in_the_next_round, {"_"}),
        (read_on_one_way, set()),
        (read_by_a_handler, set()),
        (in_a_cell, set()),
    ],
)
def test_what_is_dead_after_a_look(function: Callable[..., Any], dead: set[str]) -> None:
    body = list(dis.get_instructions(function))
    here = next(number for number, each in enumerate(body) if each.argval == "here")
    jump = next(each for each in body[here:] if each.opname.startswith("POP_JUMP"))
    assert dead_after(function.__code__, jump.offset) == dead


def test_an_unknown_place_has_no_dead_variables() -> None:
    assert dead_after(stored_again.__code__, 1) == frozenset()
