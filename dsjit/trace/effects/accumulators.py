"""State that the call only adds to: counters, tables of them, histories. It is not guarded by value.

What such a number or container holds does not matter for what the call does, as long as every read of it is proven to
serve nothing but an addition (`trace.reads.uses`). The first other read makes it ordinary state, noted as it was
before.
"""

from __future__ import annotations

import types
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dsjit.trace.effects.before import Key
from dsjit.trace.reads.facts import is_constant
from dsjit.trace.reads.notes import Node, Notes
from dsjit.trace.reads.paths import ABSENT, Absent, Attribute, Item, Slot, Step
from dsjit.trace.reads.uses import Load, Use, attribute_load

__all__ = ["CANDIDATES", "Accumulators"]

_NUMBERS: Final = frozenset({int, float})
_TABLES: Final = frozenset({dict, defaultdict, Counter})
CANDIDATES: Final = _NUMBERS | _TABLES | {list, set, deque}
"""Types of what may be added to."""


@dataclass(slots=True)
class _Counted:
    """store: code object (its id) and offset that store the next sum. read: what was read for it, and the amount."""

    node: Node
    step: Step
    original: int | float
    store: tuple[int, int] = (0, 0)
    read: tuple[Any, Any] | None = None
    amounts: list[int | float] = field(default_factory=list)


@dataclass(slots=True)
class _Grown:
    """puts, adds: keys of a dictionary that are stored to, and that are added to; elements that are put into a set.
    stores: as in `_Counted`. appended: how often something was appended to a deque; None when that is not known."""

    node: Node
    stores: set[tuple[int, int]] = field(default_factory=set)
    puts: dict[Any, None] = field(default_factory=dict)
    adds: dict[Any, None] = field(default_factory=dict)
    appended: int | None = 0


class Accumulators:
    """What is added to, so far. `amounts` and `grown` are known once `finish` was called.

    amounts: by `Before.key`: what to add, in order.
    grown: ids of the lists and deques that were appended to, and of the dictionaries and sets of which some entries
        were set or added to, with their keys; of a deque, how many elements are new.
    sums: ids of the traced numbers that were left where something was added; each is there once.
    """

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._numbers: dict[Key, _Counted] = {}
        self._containers: dict[int, _Grown] = {}
        self._stored: dict[Key, tuple[Node, Step, Any]] = {}
        self.amounts: dict[Key, tuple[int | float, ...]] = {}
        self.grown: dict[int, tuple[Any, ...]] = {}
        self.sums: list[int] = []

    # ---------------------------------------------------------------- reads and writes

    def read_attribute(self, node: Node, step: Attribute | Slot, value: Any, frame: types.FrameType) -> bool:
        """`frame` reads an attribute and finds `value`: whether it does so only to add to it, which is noted then."""
        load = attribute_load(frame.f_code, frame.f_lasti, step.name)
        if load.use is Use.ANY:
            return False
        if type(value) in _NUMBERS or self._notes.numbers.is_traced(value):
            return self._count_attribute(node, step, value, load, frame)
        keys = [] if load.key is None else [_value_of(load.key, frame)]
        if not self._grow(node, step, value, [load], keys):
            return False
        grown = self._containers[id(value)]
        grown.stores.add((id(frame.f_code), load.store))
        if grown.appended is not None:
            grown.appended += 1
        return True

    def read_name(self, node: Node, step: Step, value: Any, loads: Sequence[Load]) -> bool:
        """The same for a global or closure variable, which `loads` load and nothing else."""
        if type(value) is int and loads and all(load.use is Use.ADD for load in loads):
            key = self._notes.before.key(node.obj, step)
            if key in self._notes.plain:
                return False
            original = self._notes.before.original(node.obj, step, value)
            self._numbers.setdefault(key, _Counted(node, step, original))
            return True
        if type(value) in _NUMBERS or not loads or any(load.use is Use.ADD for load in loads):
            return False
        return self.hold(node, step, value, loads)

    def hold(self, node: Node, step: Step, value: Any, loads: Sequence[Load]) -> bool:
        """The same for a container."""
        keys = [load.key[1] if load.key[0] == "constant" else ABSENT for load in loads if load.key is not None]
        if type(value) in _NUMBERS or not self._grow(node, step, value, loads, keys):
            return False
        self._containers[id(value)].appended = None
        return True

    def has_read(self, key: Key) -> bool:
        """Whether what is there was read for an addition."""
        return key in self._numbers or key[0] in self._containers

    def store_name(self, node: Node, step: Step, value: Any) -> None:
        """A global or closure variable may be stored to, and is not loaded."""
        key = self._notes.before.key(node.obj, step)
        self._stored.setdefault(key, (node, step, self._notes.before.original(node.obj, step, value)))

    def _count_attribute(
        self, node: Node, step: Attribute | Slot, value: int | float, load: Load, frame: types.FrameType
    ) -> bool:
        key = self._notes.before.key(node.obj, step)
        if load.use is not Use.ADD or key in self._notes.plain:
            return False
        amount: Any = ABSENT
        if type(value) is float:
            amount = _value_of(load.amount, frame)
            if type(amount) in _NUMBERS:
                amount = -amount if load.subtract else amount
        counted = self._numbers.get(key)
        if counted is None:
            if self._notes.before.original(node.obj, step, ABSENT) is not value:
                return False
            counted = self._numbers[key] = _Counted(node, step, value)
        counted.store, counted.read = (id(frame.f_code), load.store), (value, amount)
        return True

    def _grow(self, node: Node, step: Step, value: Any, loads: Sequence[Load], keys: Sequence[Any]) -> bool:
        kind = type(value)
        if kind not in CANDIDATES or not all(fits(kind, load) for load in loads) or not all(map(is_constant, keys)):
            return False
        if not self._notes.note_light(node, step, value):
            return False
        grown = self._containers.setdefault(id(value), _Grown(self._notes.nodes[id(value)]))
        for load, key in zip([each for each in loads if each.key is not None], keys, strict=True):
            if load.use is Use.ITEM:
                self._notes.note_entry(grown.node, key)
            else:
                (grown.adds if load.use is Use.ADD_ITEM else grown.puts)[key] = None
        return True

    def stores(self, obj: object, step: Step, frame: types.FrameType, current: Any, value: Any) -> bool:
        """Whether `value`, which `frame` is about to store in an attribute in place of `current`, is the sum that the
        attribute was read for. If not, it is no accumulator any more."""
        place = (id(frame.f_code), frame.f_lasti)
        key = self._notes.before.key(obj, step)
        counted = self._numbers.get(key)
        if counted is None:
            grown = self._containers.get(id(current))
            return grown is not None and grown.node.light and value is current and place in grown.stores
        if counted.store == place and counted.read is not None:
            (old, amount), counted.read = counted.read, None
            if type(value) is type(old) is int:
                amount = value - old
            elif self._notes.numbers.is_traced(value) and isinstance(value, type(counted.original)):
                amount = self._notes.numbers.added(value, old)
            elif type(value) is not float or type(amount) not in _NUMBERS or old + amount != value:
                amount = ABSENT
            if amount is not ABSENT:
                counted.amounts.append(amount)
                return True
        # The number that was read may be part of what is stored.
        self._notes.note(counted.node, counted.step, counted.original)
        del self._numbers[key]
        return False

    def is_settled(self) -> bool:
        """Whether nothing was added or stored so far."""
        notes = self._notes
        counted = ((each.node, each.step, each.original) for each in self._numbers.values())
        unchanged = (notes.unchanged(old, step.get(node.obj)) for node, step, old in (*counted, *self._stored.values()))
        return all(unchanged) and not any(each.amounts for each in self._numbers.values())

    # ---------------------------------------------------------------- the end

    def finish(self) -> None:
        """Decide what was added; whatever does not fit is noted as it was."""
        notes = self._notes
        for key, counted in self._numbers.items():
            node, step = counted.node, counted.step
            if key in notes.plain:
                continue
            now = step.get(node.obj)
            if notes.numbers.is_traced(now):
                if not isinstance(now, type(counted.original)) or not counted.amounts:
                    notes.note(node, step, counted.original)
                    continue
                self.sums.append(id(now))
            elif type(now) is not type(counted.original):
                notes.note(node, step, counted.original)
                continue
            notes.note_number(node, step, counted.original)
            is_attribute = isinstance(step, Attribute | Slot)
            self.amounts[key] = tuple(counted.amounts if is_attribute else [now - counted.original])
        for key, (node, step, original) in self._stored.items():
            now = step.get(node.obj)
            if key in notes.plain or notes.unchanged(original, now):
                notes.note(node, step, original)
            else:
                notes.stored.append((node, step, original))
        for grown in self._containers.values():
            if grown.node.light and not self._finish_container(grown):
                notes.explore(grown.node)
        self._numbers.clear()

    def _finish_container(self, grown: _Grown) -> bool:
        live, notes = grown.node.obj, self._notes
        before = notes.before.content(live)
        if isinstance(live, list):
            if len(live) < len(before) or any(a is not b for a, b in zip(live, before, strict=False)):
                return False
            self.grown[id(live)] = ()
            return True
        if isinstance(live, deque):
            return self._finish_deque(grown, before)
        if isinstance(live, set):
            if not all(map(is_constant, (*before, *live))) or set(live) != {*before, *grown.puts}:
                return False
            self.grown[id(live)] = tuple(grown.puts)
            return True
        assert isinstance(before, dict)
        changed = [key for key in {**before, **live} if before.get(key, ABSENT) is not live.get(key, ABSENT)]
        if grown.puts.keys() & grown.adds.keys():
            return False
        if any(key not in live or not (key in grown.puts or key in grown.adds) for key in changed):
            return False
        added = {key: (before.get(key, ABSENT), live.get(key, ABSENT)) for key in grown.adds}
        amounts = {key: self._amounts(old, new) for key, (old, new) in added.items()}
        if None in amounts.values():
            return False
        for key in (*grown.puts, *grown.adds):
            old, new = before.get(key, ABSENT), live.get(key, ABSENT)
            if key in grown.adds and type(old) in _NUMBERS:
                notes.note_number(grown.node, Item(key), old)
                self.amounts[notes.before.key(live, Item(key))] = amounts[key] or ()
                if notes.numbers.is_traced(new):
                    self.sums.append(id(new))
            elif old is new:
                # It was not stored to, or the same was stored: then the call depends on it having been there.
                notes.note(grown.node, Item(key), old)
        self.grown[id(live)] = tuple(changed)
        return True

    def _finish_deque(self, grown: _Grown, before: Any) -> bool:
        """Each append was counted, so what is new is at the end, as far as there is room."""
        live = grown.node.obj
        if grown.appended is None or (before and all(element is before[0] for element in (*before, *live))):
            return False  # one more and one less of the same would not be told apart
        new = min(grown.appended, len(live))
        expected = [*before, *list(live)[len(live) - new :]]
        if live.maxlen is not None:
            expected = expected[max(len(expected) - live.maxlen, 0) :]
        if len(expected) != len(live) or any(a is not b for a, b in zip(expected, live, strict=True)):
            return False
        self.grown[id(live)] = (new,)
        return True

    def _amounts(self, old: Any, new: Any) -> tuple[int | float, ...] | None:
        """What was added to `old`, in order, by `+=` alone, so that it became `new`; None when that is not known."""
        traced = self._notes.numbers.is_traced(new)
        if type(old) is type(new) and type(new) in (int, Absent) and not traced:
            return () if type(new) is Absent else (new - old,)
        found: list[Any] = []
        while type(old) in _NUMBERS and isinstance(new, type(old)) and new is not old:
            before, amount = self._notes.numbers.last_addition(new)
            if amount is ABSENT:
                return None
            found.append(amount)
            new = before
        return tuple(reversed(found)) if type(old) in _NUMBERS and new is old else None


def fits(kind: type, load: Load) -> bool:
    """Whether a container of this type can be put into without guarding what it holds."""
    if kind is list:
        return load.use is Use.APPEND or (load.use is Use.ADD and load.in_place)
    if kind is deque:
        return load.use is Use.APPEND
    return load.use in ((Use.ADD_ELEMENT, Use.ITEM) if kind is set else (Use.PUT, Use.ADD_ITEM, Use.ITEM))


def _value_of(operand: tuple[str, Any] | None, frame: types.FrameType) -> Any:
    """What a constant or local variable holds; ABSENT when it is neither."""
    if operand is None:
        return ABSENT
    return operand[1] if operand[0] == "constant" else frame.f_locals.get(operand[1], ABSENT)
