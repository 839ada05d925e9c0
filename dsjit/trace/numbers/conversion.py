"""Traced numbers where Python or torch take nothing but a plain one, or what they know for one.

*Results of `int(...)` and `float(...)`* must be of exactly that type. So a plain number is handed over, an object of
its own, and becomes a traced one when the frame that called goes on (`trace.looks.arrivals`). Between the two nothing
can see the number. That holds where the call is an instruction of Python code (`trace.looks.look_sites.is_conversion`);
C code that calls these types (`map(int, tensors)`) reads the result first, and gets a plain number that was looked at.

*Arguments of torch's functions*: their parsers want an int where they take a number. So ints are revealed to them,
which means that C code may read them unasked, until the frame that called goes on; the trace's function mode comes
first.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

from dsjit.trace.looks.arrivals import Arrivals, can_await
from dsjit.trace.looks.look_sites import is_conversion
from dsjit.trace.numbers.object import become, become_plain
from dsjit.trace.reads.library import is_own_file

__all__ = ["Conversions"]


class Conversions:
    """The conversions of one trace. revealed: the class of ints that are revealed, once there are traced ints."""

    def __init__(self) -> None:
        self.arrivals = Arrivals()
        self._frame: types.FrameType | None = None
        self.revealed: type[float] | None = None

    def begin(self, kind: type) -> bool:
        """Whether what runs is `kind(...)`, called by code that can be handed a number later (see `hand_over`)."""
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and is_own_file(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None or not is_conversion(frame, kind) or not self.can_wait():
            return False
        self._frame = frame
        return True

    def can_wait(self) -> bool:
        """Whether something can be done when a frame goes on."""
        return self.arrivals.is_free() and can_await()

    def hand_over(self, number: float, is_open: Callable[[], bool]) -> None:
        """The call under way returns `number`: it is a plain one until then, and what it is now afterwards, if it
        `is_open` by then. `begin` has returned True."""
        assert self._frame is not None
        kind = type(number)
        become_plain(number)
        self._change_later(self._frame, number, is_open, kind)

    def reveal(self, frame: types.FrameType, number: float, is_open: Callable[[], bool]) -> None:
        """`frame` calls a function of torch, which may take this traced int for an int until it has returned, and
        which is traced afterwards if it is open by then."""
        kind = type(number)
        assert self.revealed is not None
        become(number, self.revealed)
        self._change_later(frame, number, is_open, kind)

    def _change_later(
        self, frame: types.FrameType, number: float, is_open: Callable[[], bool], kind: type[float]
    ) -> None:
        def change() -> None:
            if is_open():
                become(number, kind)

        self.arrivals.call(frame, change)

    def stop(self) -> None:
        """The trace has ended."""
        self._frame = None
        self.arrivals.forget()
