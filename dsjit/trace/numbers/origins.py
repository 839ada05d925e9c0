"""Which of the caller's numbers a traced number was computed from, where that was nothing else.

Such a number is known as soon as those are. So when Python sees it, they are *settled*: each becomes a fact of the
guard again (`trace.numbers.open_places`), and what Python saw is no outcome of the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dsjit.ir.graph import Arg, Value

__all__ = ["Origins"]


class Origins:
    """The origins of the numbers of one trace."""

    def __init__(self) -> None:
        self._of: dict[Value, frozenset[Value]] = {}
        self._open: dict[Value, Callable[[], None]] = {}

    def plant(self, value: Value, settle: Callable[[], None]) -> None:
        """`value` is a number of the caller's. settle: called once, when it has to be known."""
        self._of[value] = frozenset((value,))
        self._open[value] = settle

    def note_constant(self, value: Value) -> None:
        """`value` is the same on each run."""
        self._of[value] = frozenset()

    def note(self, result: Value, arguments: Iterable[Arg]) -> None:
        """`result` was computed from these arguments."""
        known = [self._of.get(argument) for argument in arguments if isinstance(argument, Value)]
        found = [origins for origins in known if origins is not None]
        if found and len(found) == len(known):
            self._of[result] = frozenset().union(*found)

    def settle(self, value: Value) -> bool:
        """Have everything known that `value` was computed from; False when that is not numbers of the caller's."""
        origins = self._of.get(value)
        for origin in origins or ():
            settle = self._open.pop(origin, None)
            if settle is not None:
                settle()
        return bool(origins)

    def is_settled(self, value: Value) -> bool:
        """Whether the guard knows what `value` is."""
        origins = self._of.get(value)
        return bool(origins) and self._open.keys().isdisjoint(origins or ())
