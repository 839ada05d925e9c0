"""What is known of each traced number."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Final

from dsjit.ir.graph import Value
from dsjit.trace.numbers.tables import SCALAR

__all__ = ["OWN_REFERENCES", "Entry"]


@dataclass(slots=True)
class Entry:
    """A number that was handed out, and its Value.

    bound: what its magnitude cannot exceed as long as it is finite. pinned: its value is an outcome, or guarded.
    addition: the operands, when it is a sum, or a difference.
    """

    number: float
    value: Value
    bound: float
    pinned: bool = False
    addition: tuple[Any, Any, bool] | None = None


def _own_references() -> int:
    """References to a number that only its entry holds, as `sys.getrefcount` counts them."""
    entry = Entry(float("0.5"), Value(0, SCALAR), 0.5)
    return sys.getrefcount(entry.number)


OWN_REFERENCES: Final = _own_references()
