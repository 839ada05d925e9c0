"""What the executor must know of compiled code to run it: how much work there is, and which integers it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

__all__ = ["KernelWork"]


class KernelWork(Protocol):
    """For given values of the sizes that are parameters, by name, in order."""

    def item_count(self, values: Mapping[str, int]) -> int:
        """How many independent pieces of work there are."""
        ...

    def item_cost(self, values: Mapping[str, int]) -> int:
        """A rough estimate of the nanoseconds that one of them takes, at least 1."""
        ...

    def arguments(self, values: Mapping[str, int]) -> tuple[int, ...]:
        """The integers that the function takes after its buffers."""
        ...
