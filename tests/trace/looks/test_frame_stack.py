"""The iterators of `for` loops are found on the stacks of running frames, and can be replaced."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from dsjit.trace.looks.frame_stack import can_reach_stacks, put_on_stack, stack_entry


def test_this_interpreter_lays_frames_out_as_is_thought() -> None:
    assert can_reach_stacks()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_nested_iterators_lie_in_order(count: int) -> None:
    outer, inner = iter(range(2)), iter([1])
    extra = [count] * count  # a closure and some variables more
    for _ in outer:
        for _ in inner:
            frame = sys._getframe()
            assert stack_entry(frame, 0) is outer and stack_entry(frame, 1) is inner
            del frame
    assert (lambda: len(extra))() == count


def test_a_replaced_iterator_gives_the_rest() -> None:
    def letters() -> Iterator[Any]:
        yield from "xy"

    found: list[Any] = []
    numbers = iter(range(100))
    references = sys.getrefcount(numbers)
    for number in numbers:
        found.append(number)
        if number == 1:
            frame = sys._getframe()
            put_on_stack(frame, 0, letters())
            del frame
    assert found == [0, 1, "x", "y"]
    assert sys.getrefcount(numbers) == references
