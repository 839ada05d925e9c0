"""Ratios of what was measured of two contenders in one run."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from benchmarks.worker import Cold

__all__ = ["Comparison", "Timed"]


class Timed(Protocol):
    """Figures of a contender. rounds: seconds, one figure for each round."""

    @property
    def rounds(self) -> Sequence[float]: ...

    @property
    def cold(self) -> Cold | None: ...


class Comparison(ABC):
    """All contenders on one workload."""

    __slots__ = ()

    @abstractmethod
    def contender(self, name: str) -> Timed:
        """The figures of the contender called `name`; empty ones if it did not take part."""

    def speed(self, contender: str, over: str) -> float | None:
        """How many times as fast `contender` is as `over`: the median of the rounds' ratios."""
        pairs = list(zip(self.contender(over).rounds, self.contender(contender).rounds, strict=False))
        return statistics.median(slow / fast for slow, fast in pairs) if pairs else None

    def cold_fraction(self, contender: str, of: str) -> float | None:
        """The cold compile time of `contender` as a fraction of the other's."""
        one, other = self.contender(contender).cold, self.contender(of).cold
        return one.compile / other.compile if one and other and other.compile else None
