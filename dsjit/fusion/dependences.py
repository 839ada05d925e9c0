"""Which units of a plan must run before which, while the plan is made and when it is done."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

__all__ = ["Dependences", "Placed"]


class Placed(Protocol):
    """A unit. number: units count down the program. high: the position of its last node."""

    @property
    def number(self) -> int: ...

    @property
    def high(self) -> int: ...


UnitT = TypeVar("UnitT", bound=Placed)


@dataclass(frozen=True, slots=True)
class Dependences(Generic[UnitT]):
    """successors: of each unit, those that use its results. predecessors: the other way around."""

    successors: dict[UnitT, dict[UnitT, None]] = field(default_factory=dict)
    predecessors: dict[UnitT, dict[UnitT, None]] = field(default_factory=dict)

    def add(self, unit: UnitT, user: UnitT) -> None:
        """`unit` must run before `user`."""
        self.successors.setdefault(unit, {})[user] = None
        self.predecessors.setdefault(user, {})[unit] = None

    def merge(self, unit: UnitT, other: UnitT) -> None:
        """What held for `other` holds for `unit`; neither reaches the other."""
        for user in self.successors.pop(other, {}):
            del self.predecessors[user][other]
            self.add(unit, user)
        for maker in self.predecessors.pop(other, {}):
            del self.successors[maker][other]
            self.add(maker, unit)

    def reaches(self, start: UnitT, goal: UnitT) -> bool:
        """Whether `goal` (transitively) uses a result of `start`.

        Sought from the goal: of what it needs, little is placed yet, as nodes are placed last to first. Positions tell
        nothing about what a unit reaches, since a group may have members all over the program.
        """
        stack, seen = [goal], {goal}
        while stack:
            for maker in self.predecessors.get(stack.pop(), ()):
                if maker is start:
                    return True
                if maker not in seen:
                    seen.add(maker)
                    stack.append(maker)
        return False

    def in_order(self, units: Sequence[UnitT]) -> list[UnitT]:
        """Topological order, as near to program order as the dependences allow.

        A unit that siblings from far behind have joined comes where what depends on it is due, lest all of that waits.
        """
        ordered = self._topological(units, {unit: unit.high for unit in units})
        due: dict[UnitT, int] = {}
        for unit in reversed(ordered):
            due[unit] = min([unit.high, *[due[following] for following in self.successors.get(unit, ())]])
        if all(unit.high == due[unit] for unit in units):
            return ordered
        return self._topological(units, due)

    def _topological(self, units: Sequence[UnitT], due: Mapping[UnitT, int]) -> list[UnitT]:
        """Of the units that can run, always the one that is due first."""
        pending = {unit: len(self.predecessors.get(unit, ())) for unit in units}
        ready = [(due[unit], unit.number, unit) for unit in units if not pending[unit]]
        heapq.heapify(ready)
        ordered: list[UnitT] = []
        while ready:
            _, _, unit = heapq.heappop(ready)
            ordered.append(unit)
            for following in self.successors.get(unit, ()):
                pending[following] -= 1
                if not pending[following]:
                    heapq.heappush(ready, (due[following], following.number, following))
        assert len(ordered) == len(units), "fusion made a cycle"
        return ordered
