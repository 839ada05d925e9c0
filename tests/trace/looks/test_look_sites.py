"""Where a frame can look and have nothing else on its value stack, and where it calls a function directly."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from dsjit.trace.looks.look_sites import LookSite, call_site, look_site
from dsjit.trace.looks.outcome import OutcomeKind


class Looked:
    """In place of a tensor: notes what is known of the place where it is looked at."""

    def __init__(self) -> None:
        self.looks: list[tuple[LookSite | None, bool]] = []

    def _note(self, kind: OutcomeKind) -> bool:
        frame = sys._getframe(2)
        site = look_site(frame)
        self.looks.append((site, site is not None and site.sees_only(kind, frame, frame.f_locals)))
        return len(self.looks) < 3

    def __bool__(self) -> bool:
        return self._note(OutcomeKind.TRUTH)

    def __lt__(self, other: object) -> bool:
        return self._note(OutcomeKind.TRUTH)

    def item(self) -> bool:
        return self._note(OutcomeKind.NUMBER)


def in_while(t: Any) -> None:
    while t:
        pass


def in_while_not(t: Any) -> None:
    done = False
    while not done:
        done = not t


def in_compare(t: Any, limit: float = 1.0) -> None:
    while t < limit:
        pass


def in_compare_with_an_attribute(t: Any) -> None:
    class_ = types.SimpleNamespace(limit=1)
    while t < class_.limit:
        pass


def in_bool(t: Any) -> None:
    while bool(t):
        pass


def outside_of_a_loop_under_with(t: Any) -> None:
    with nullcontext():
        while t:
            pass


@pytest.mark.parametrize(
    "function",
    [in_while, in_while_not, in_compare, in_compare_with_an_attribute, in_bool, outside_of_a_loop_under_with],
    ids=lambda function: function.__name__,
)
def test_nothing_else_is_on_the_stack(function: Callable[[Any], None]) -> None:
    looked = Looked()
    function(looked)
    site, alone = looked.looks[-1]
    assert site is not None and site.repeats and alone


def in_an_expression_of_a_for(t: Any) -> None:
    for _ in range(3):
        1 + bool(t)


def in_with(t: Any) -> None:
    while len(t.looks) < 3:
        with nullcontext():
            if t:
                pass


def in_an_expression(t: Any) -> None:
    while len(t.looks) < 3:
        1 + bool(t)


def in_a_comparison_of_tuples(t: Any) -> None:
    other = Looked()
    while len(t.looks) < 3 and (t, 1) < (other, 2):
        pass


def in_a_handler(t: Any) -> None:
    while len(t.looks) < 3:
        try:
            raise ValueError
        except ValueError:
            if t:
                pass


def in_a_generator(t: Any) -> None:
    def rounds() -> Any:
        while t:
            yield

    list(rounds())


def in_a_function_in_c(t: Any) -> None:
    while any([t]) and len(t.looks) < 3:
        pass


def as_a_renamed_bool(t: Any) -> None:
    bool = all
    while bool([t, t]) and len(t.looks) < 3:
        pass


@pytest.mark.parametrize(
    "function",
    [
        in_an_expression_of_a_for,
        in_with,
        in_an_expression,
        in_a_comparison_of_tuples,
        in_a_handler,
        in_a_generator,
        in_a_function_in_c,
        as_a_renamed_bool,
    ],
    ids=lambda function: function.__name__,
)
def test_something_else_may_be_on_the_stack(function: Callable[[Any], None]) -> None:
    looked = Looked()
    function(looked)
    assert looked.looks and not any(alone for _, alone in looked.looks)


def test_a_look_outside_of_loops_does_not_repeat() -> None:
    looked = Looked()
    if looked:
        pass
    [(site, alone)] = looked.looks
    assert site is not None and not site.repeats and alone


class Caller:
    """Calls a function in several ways; each notes the place of the call."""

    found: bool

    def method(self) -> bool:
        frame = sys._getframe(1)
        site = call_site(frame)
        code = sys._getframe(0).f_code
        self.found = site is not None and site.calls(code, frame, frame.f_locals)
        return False

    def by_method(self) -> None:
        while self.method():
            pass

    def by_variable(self) -> None:
        method = self.method
        if not method():
            pass

    def by_map(self) -> None:
        list(map(Caller.method, [self]))

    def by_sorting(self) -> None:
        sorted([self], key=Caller.method)

    def in_an_expression(self) -> None:
        1 + self.method()


@pytest.mark.parametrize(
    ("way", "direct"),
    [("by_method", True), ("by_variable", True), ("by_map", False), ("by_sorting", False), ("in_an_expression", False)],
)
def test_direct_calls_are_told_from_calls_through_functions_in_c(way: str, direct: bool) -> None:
    caller = Caller()
    getattr(caller, way)()
    assert caller.found is direct


def test_the_iterators_of_for_loops_are_known() -> None:
    looked = Looked()
    for _ in range(2):
        for _ in "ab":
            if looked:
                break
    site, _ = looked.looks[-1]
    assert site is not None and site.repeats and site.iterators == (0, 1)
