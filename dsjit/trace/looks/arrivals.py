"""Calls something before the next instruction of a frame that is running a call.

Python tells a trace function (`sys.settrace`) of each instruction of the frames that ask for it (`f_trace_opcodes`).
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

__all__ = ["Arrivals", "can_await"]


class Arrivals:
    """What is awaited on this thread. Of no use while others trace it (`is_free`): debuggers, coverage."""

    def __init__(self) -> None:
        self._awaited: dict[types.FrameType, tuple[Any, list[Callable[[], None]]]] = {}

    def is_free(self) -> bool:
        """Whether nobody else's trace function is installed."""
        return sys.gettrace() in (None, _ignore)

    def call(self, frame: types.FrameType, arrived: Callable[[], None]) -> None:
        """Call `arrived` when `frame` goes on."""
        if frame not in self._awaited:
            self._awaited[frame] = frame.f_trace, []
            frame.f_trace_opcodes, frame.f_trace = True, self._arrive
            sys.settrace(_ignore)
        self._awaited[frame][1].append(arrived)

    def mark(self, frame: types.FrameType, kind: type, make: Callable[[], Any]) -> Any:
        """The mark of this kind that `frame` has, or a new one: it is the frame's trace function otherwise."""
        former, calls = self._awaited.get(frame, (frame.f_trace, None))
        if isinstance(former, kind):
            return former
        found = make()
        if calls is None:
            frame.f_trace = found
        else:
            self._awaited[frame] = found, calls
        return found

    def _arrive(self, frame: types.FrameType, event: str, argument: Any) -> None:
        former, calls = self._awaited.pop(frame)
        if not self._awaited:
            sys.settrace(None)
        frame.f_trace, frame.f_trace_opcodes = former, False
        for call in calls:
            call()

    def forget(self) -> None:
        """The trace has ended, and with it all frames that something is awaited of."""
        for frame, (former, _) in self._awaited.items():
            frame.f_trace, frame.f_trace_opcodes = former, False
        self._awaited.clear()
        if sys.gettrace() is _ignore:
            sys.settrace(None)


def _ignore(frame: types.FrameType, event: str, argument: Any) -> None:
    """For the calls of other functions in the meantime."""


@functools.cache
def can_await() -> bool:
    """Whether this interpreter tells of the next instruction of a frame that runs already."""
    arrivals, seen = Arrivals(), [0]

    def arrive() -> None:
        seen[0] += 1

    def ask() -> int:
        arrivals.call(sys._getframe(1), arrive)
        return seen[0]

    former = sys.gettrace()
    asked, found = ask(), seen[0]
    arrivals.forget()
    sys.settrace(former)
    return (asked, found) == (0, 1)
