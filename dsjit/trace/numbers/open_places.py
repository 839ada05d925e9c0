"""Places where Python keeps a number that changes from call to call: an argument, a counter, a schedule's state.

Reads of them would be facts that fail on each call. When a place is *open*, the traced call finds a traced number there
instead (`trace.numbers.numbers`): it is put into the place itself, which is the only way to have every read find it,
and taken away when the call has ended. The number is an input of the program, which the guard makes a tensor of, and
the guard asks for no more than its type. Where Python sees the number itself (as an index, a length, in text), the
place is closed again: the fact is what it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import torch

from dsjit.trace.effects.before import Key
from dsjit.trace.effects.writes import SetCell, SetClass, SetEntry, SetSlot, Write
from dsjit.trace.reads.facts import ARGS_SLOT, KWARGS_SLOT, Constant, OpenNumber
from dsjit.trace.reads.notes import Node, Notes
from dsjit.trace.reads.paths import (
    ABSENT,
    Asked,
    Attribute,
    Closure,
    Index,
    InstanceKeys,
    Item,
    Lookup,
    Path,
    Slot,
    Step,
    instance_dict,
)

__all__ = ["NumberSource", "OpenPlaces"]

_DTYPES: Final = {int: torch.int64, float: torch.float64}
_HEAP_TYPE: Final = 1 << 9


class NumberSource(Protocol):
    """What is asked of `trace.numbers.numbers.Numbers`."""

    def may_trace(self, whole: bool = True) -> bool: ...

    def of_caller(self, number: float, tensor: torch.Tensor, settle: Callable[[], None]) -> float: ...

    def mark_pinned(self, number: float) -> None: ...


@dataclass(slots=True, eq=False)
class _Planted:
    """`number` stands where `original` was found. facts: the positions of those about it. write: how to put it back."""

    node: Node
    step: Step
    original: float
    write: Write
    facts: list[int] = field(default_factory=list)
    number: Any = ABSENT


class OpenPlaces:
    """The open places of one traced call.

    paths: of the places. is_added_to: whether a place was read only for an addition, by code that has the plain number.
    opened: paths where traced numbers were put. closed: those of them where Python saw the number itself.
    """

    def __init__(self, paths: frozenset[Path], notes: Notes, is_added_to: Callable[[Key], bool]) -> None:
        self._paths = paths
        self._notes = notes
        self._is_added_to = is_added_to
        self._planted: dict[Key, _Planted] = {}
        self._arguments: dict[int, Any] = {}
        self._keywords: dict[Any, Any] = {}
        notes.on_fact = self.on_fact
        notes.open_owners = frozenset(path.parent for path in paths if path.parent is not None)
        self.opened: set[Path] = set()
        self.closed: set[Path] = set()
        self.numbers: NumberSource | None = None

    def is_open(self, node: Node, name: str) -> bool:
        """Whether what an object stores as this attribute is an open number."""
        steps = (Attribute(name), Slot(name))
        return bool(self._paths) and any(node.path.then(step) in self._paths for step in steps)

    def open(self, numbers: NumberSource) -> None:
        """The traced code is about to run: open what was met before."""
        if not self._paths or not numbers.may_trace():  # asked here first: hooks cannot find out what it depends on
            return
        self.numbers = numbers
        for position in range(len(self._notes.facts)):
            self.on_fact(position)

    def on_fact(self, position: int) -> None:
        """The fact at this position was noted, about a place that no code of the traced call has read before."""
        fact = self._notes.facts[position]
        if self.numbers is None or type(fact.expectation) is not Constant:
            return
        node, original = self._notes.found[position]
        step, kind = fact.step, type(original)
        key = self._notes.before.key(node.obj, step)
        if key in self._planted and self._planted[key].original is original:
            self._expect(position, self._planted[key])
            return
        if fact.path not in self._paths:
            return
        if kind not in _DTYPES or not OpenNumber(kind).matches(original) or step.get(node.obj) is not original:
            return
        write = self._write(node, step)
        if node.slot not in (ARGS_SLOT, KWARGS_SLOT) and threading.active_count() > 1:
            return  # another thread may look there meanwhile
        if write is None or self._is_added_to(key):
            return
        if not self.numbers.may_trace(kind is int):
            return
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():  # the program makes no tensor here
            asked = Asked("as_tensor", number_tensor, (step, kind))
            tensor = asked.get(node.obj)
            self._notes.note(node, asked, tensor)
            planted = self._planted[key] = _Planted(node, step, original, write)
            planted.number = self.numbers.of_caller(original, tensor, lambda: self._close(planted))
        self._expect(position, planted)
        self.opened.add(fact.path)
        if node.slot == ARGS_SLOT and isinstance(step, Index):
            self._arguments[step.index] = planted.number
        elif node.slot == KWARGS_SLOT and isinstance(step, Item):
            self._keywords[step.key] = planted.number
        else:
            write.apply(node.obj, planted.number)

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call, with traced numbers for those that are open."""
        given = tuple([self._arguments.get(position, value) for position, value in enumerate(args)])
        return given, {**kwargs, **self._keywords}

    def original(self, value: Any) -> Any:
        """What was where `value` is: another object if `value` was put there by this one."""
        found = [each.original for each in self._planted.values() if each.number is value]
        return found[0] if found else value

    @contextmanager
    def withdrawn(self) -> Iterator[None]:
        """For a while, the places hold what they held before."""
        away = [each for each in self._planted.values() if self._is_in_place(each)]
        for each in away:
            each.write.apply(each.node.obj, each.original)
        try:
            yield
        finally:
            for each in away:
                each.write.apply(each.node.obj, each.number)

    def restore(self) -> None:
        """The call has ended: places that it did not write hold what they held before."""
        for each in self._planted.values():
            if self._is_in_place(each):
                each.write.apply(each.node.obj, each.original)
            each.number = ABSENT
        self.numbers = None
        self._arguments.clear()
        self._keywords.clear()

    def _expect(self, position: int, planted: _Planted) -> None:
        """The fact at this position asks for the type alone, unless the number was seen."""
        fact = self._notes.facts[position]
        planted.facts.append(position)
        if fact.path not in self.closed and not any(self._notes.facts[n].path in self.closed for n in planted.facts):
            self._notes.facts[position] = replace(fact, expectation=OpenNumber(type(planted.original)))

    def _is_in_place(self, planted: _Planted) -> bool:
        return planted.number is not ABSENT and planted.step.get(planted.node.obj) is planted.number

    def _close(self, planted: _Planted) -> None:
        """Python sees the number, or something that is computed from it alone."""
        facts = self._notes.facts
        for position in planted.facts:
            facts[position] = replace(facts[position], expectation=Constant(planted.original))
            self.closed.add(facts[position].path)
        if self.numbers is not None and planted.number is not ABSENT:
            self.numbers.mark_pinned(planted.number)

    def _write(self, node: Node, step: Step) -> Write | None:
        """How to store a number where `step` reads it; None where that cannot be done without being seen."""
        obj = node.obj
        if node.slot in (ARGS_SLOT, KWARGS_SLOT):  # not applied: the call is given other arguments
            return SetEntry(None, step) if isinstance(step, Index | Item) else None
        if isinstance(step, Attribute):
            return None if instance_dict(obj) is None else SetEntry(InstanceKeys(), step.name)
        if isinstance(step, Slot):
            return SetSlot(step.name) if step.name in self._notes.before.slots.get(id(obj), ()) else None
        if isinstance(step, Item):
            return SetEntry(None, step.key) if isinstance(obj, dict) else None
        if isinstance(step, Closure):
            return SetCell(step.index)
        own = isinstance(step, Lookup) and obj.__flags__ & _HEAP_TYPE and step.name in obj.__dict__
        return SetClass(step.name) if isinstance(step, Lookup) and own else None


def number_tensor(container: Any, step: Step, kind: type) -> Any:
    """The number that `step` finds, as a tensor of no dimension; ABSENT when it is not of this kind."""
    number = step.get(container)
    return torch.tensor(number, dtype=_DTYPES[kind]) if OpenNumber(kind).matches(number) else ABSENT
