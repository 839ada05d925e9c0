"""Collects when each step of one run of a Program began and ended."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, field
from typing import Any

__all__ = ["StepClock"]


@dataclass(slots=True)
class StepClock:
    """Written by a Program that was assembled with it; read by the profiler between runs. Times are monotonic ns."""

    sequences: list[tuple[tuple[int, ...], Any]] = field(default_factory=list)
    begun: dict[int, int] = field(default_factory=dict)
    library: dict[int, int] = field(default_factory=dict)

    def native(self, steps: tuple[int, ...]) -> int:
        """The address where a native sequence of these steps writes its timestamps: one before, one after each."""
        stamps = (ctypes.c_int64 * (len(steps) + 1))()
        self.sequences.append((steps, stamps))
        return ctypes.addressof(stamps)

    def tick(self, step: int, ended: bool) -> None:
        """A library call begins or ends."""
        now = time.monotonic_ns()
        if ended:
            self.library[step] = now - self.begun[step]
        else:
            self.begun[step] = now

    def nanoseconds(self) -> dict[int, int]:
        """What each step took in the last run, by its number."""
        taken = dict(self.library)
        for steps, stamps in self.sequences:
            for position, step in enumerate(steps):
                taken[step] = stamps[position + 1] - stamps[position]
        return taken
