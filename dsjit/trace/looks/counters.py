"""Counters: what Python's numbers tell apart in the rounds of a loop that are alike otherwise.

`n += 1; if n > 20: break` and `for step in range(50)` end a loop without a look at data, so that each number of rounds
would be a way of its own. When two rounds in a row differ in nothing but such numbers, these become traced numbers
(`trace.numbers.numbers`) where they stand: in the frame's variables, and in place of the iterator of a range on its
stack. From then on what is computed from them is in the Graph, comparing them is a look, and so is the end of a range;
the rounds are alike then, as those of a loop that counts with tensors.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dsjit.trace.looks.frame_stack import put_on_stack
from dsjit.trace.reads.facts import same_constant

__all__ = ["RANGE_ITERATOR", "Counter", "TracedRange", "changed", "find_counters", "remaining"]

RANGE_ITERATOR: Final = type(iter(range(0)))


class TracedRange:
    """The iterator of a range whose next number is a traced one."""

    def __init__(self, number: int, stop: int, step: int) -> None:
        self.number = number
        self.stop = stop
        self.step = step

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        number = self.number
        if not (number < self.stop if self.step > 0 else number > self.stop):
            raise StopIteration
        self.number = number + self.step
        return number


def remaining(iterator: Any) -> range:
    """What an iterator of a range has still to give; it does not move."""
    _, (whole,), *position = iterator.__reduce__()
    rest: range = whole[position[0] if position and position[0] else 0 :]
    return rest


@dataclass(frozen=True, slots=True)
class Counter:
    """A number, or the iterator of a range (`value` is then what it has still to give), that may be a counter.

    frame, variables, stack: of the frame that has it, and copies of what is there. place: the variable's name, or how
    high the iterator lies on the stack; `at` is its place in `stack`.
    """

    frame: types.FrameType
    variables: MutableMapping[str, Any]
    stack: MutableSequence[Any]
    place: str | int
    value: Any
    at: int = 0

    def trace(self, traced: Callable[[float], Any]) -> None:
        """Make it a traced one."""
        if isinstance(self.place, int):
            rest = self.value
            entry = TracedRange(traced(rest.start), rest.stop, rest.step)
            put_on_stack(self.frame, self.place, entry)
            self.stack[self.at] = entry
            return
        self.put(traced(self.value))

    def put(self, number: float) -> None:
        """Give the variable this value."""
        assert isinstance(self.place, str)
        self.frame.f_locals[self.place] = number
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(self.frame), ctypes.c_int(0))
        self.frame.f_locals.clear()
        self.variables[self.place] = number


def find_counters(
    frame: types.FrameType,
    variables: MutableMapping[str, Any],
    stack: MutableSequence[Any],
    heights: Sequence[int],
    is_traced: Callable[[object], bool],
) -> list[Counter]:
    """What may be a counter in one frame. heights: where the iterators in `stack` lie."""
    found = [
        Counter(frame, variables, stack, name, value)
        for name, value in sorted(variables.items())
        if type(value) in (int, float) and not is_traced(value)
    ]
    ranges = [(at, height) for at, height in enumerate(heights) if type(stack[at]) is RANGE_ITERATOR]
    return found + [Counter(frame, variables, stack, height, remaining(stack[at]), at) for at, height in ranges]


def changed(counters: Sequence[Counter], before: Sequence[Any]) -> list[Counter]:
    """Those that had other values `before`."""
    return [each for each, old in zip(counters, before, strict=True) if not same_constant(each.value, old)]
