"""Effects: what a traced call changed in Python state that existed before it, found by comparing with copies."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from dsjit.ir.graph import UNKNOWN_SOURCE, Source
from dsjit.trace.effects.accumulators import Accumulators
from dsjit.trace.effects.before import MODULE_TABLES, Copy, Key, own_iter
from dsjit.trace.effects.settled import SettledCheck
from dsjit.trace.effects.stand_in import behind
from dsjit.trace.effects.writes import (
    AddEntry,
    AddSlot,
    Extend,
    SetCell,
    SetClass,
    SetEntry,
    SetSlot,
    SetTail,
    Write,
    written_place,
)
from dsjit.trace.reads.facts import ArrayOf, Constant, NumberOf, OpenNumber, Present, SameAs, TensorOf
from dsjit.trace.reads.notes import Node, Notes, may_change_unseen
from dsjit.trace.reads.patching import PATCHED_NAMES
from dsjit.trace.reads.paths import (
    ABSENT,
    Asked,
    Attribute,
    Closure,
    InstanceKeys,
    Item,
    Lookup,
    Path,
    Root,
    Slot,
    instance_dict,
    static_lookup,
)
from dsjit.trace.training.gradients import GRAD

__all__ = ["Effect", "EffectFinder", "EffectKind", "EffectLine", "Problem", "changing_facts", "stored_attribute"]

EffectKind: TypeAlias = Literal["attribute", "item", "global", "closure", "contents", "class", "metadata"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the call cannot be captured, and at which line of the user's.

    passing: an equal call may well do without it (warnings are often given once), so that the verdict deserves a
        second look.
    """

    reason: str
    source: Source
    passing: bool = False

    def __str__(self) -> str:
        return self.reason if self.source is UNKNOWN_SOURCE else f"{self.reason} ({self.source})"


@dataclass(frozen=True, slots=True)
class Effect:
    """The call left `value` (or `ABSENT`) as `name` of the object at `path`, where something else was before.

    owner: that object. write: how a compiled call does the same to the object that it finds there; None when it
    cannot. value: for `write`; of contents, a list of elements.
    """

    path: Path
    kind: EffectKind
    name: object
    owner: Any
    write: Write | None
    value: Any
    source: Source = UNKNOWN_SOURCE

    def __str__(self) -> str:
        if self.kind == "contents":
            return f"changes the contents of {self.path}"
        if self.kind == "metadata":
            return f"changes the {self.name} of {self.path}"
        return f"writes {self.kind} {self.name!r} of {self.path}"


@dataclass(frozen=True, slots=True)
class EffectLine:
    """What each compiled call does again, for people: an Effect or an Event, without the objects that it speaks of.

    path: of what is written. source: the line that did it, where that was seen; otherwise a guard knows who read it.
    """

    text: str
    path: Path | None
    source: Source

    @staticmethod
    def of(effect: Effect) -> EffectLine:
        path, name = effect.path, effect.name
        if effect.kind in ("item", "global"):
            path = path.then(Item(name))
        elif effect.kind == "closure":
            path = path.then(Closure(str(name), 0))
        return EffectLine(str(effect), path, effect.source)


class EffectFinder:
    """Compares everything with what it was when it was met.

    classes: their entries of before. sources: lines that wrote attributes, by the object's id and the name.
    """

    def __init__(
        self,
        notes: Notes,
        accumulators: Accumulators,
        classes: Mapping[type, dict[str, Any]],
        sources: Mapping[tuple[int, str], Source],
    ) -> None:
        self.notes = notes
        self.before = notes.before
        self.accumulators = accumulators
        self.classes = classes
        self.sources = sources
        self.attributes: set[int] = set()
        self._settled = SettledCheck(notes, classes)

    def find(self, grad_mode: bool) -> tuple[Effect, ...]:
        """Every change. grad_mode: that of the call."""
        self.attributes.clear()
        return (
            *self._instances(),
            *self._containers(),
            *self._facts(),
            *self._classes(),
            *self._tensors(grad_mode),
        )

    def finds_nothing(self, grad_mode: bool) -> bool:
        """Whether nothing has changed so far, as far as changes can be seen."""
        unseen = any(map(may_change_unseen, self.notes.held.values()))
        if unseen or not self.accumulators.is_settled():
            return False
        return self._settled.nothing_changed() or not self.find(grad_mode)

    def _instances(self) -> Iterator[Effect]:
        for key, (obj, cls) in self.before.instances.items():
            node = self.notes.nodes[key]
            if type(obj) is not cls:
                yield Effect(node.path, "attribute", "__class__", obj, None, type(obj), self._source(obj, "__class__"))
            entries = instance_dict(obj)
            if entries is not None:
                yield from self._attributes(node, entries, None)
                if isinstance(obj, torch.nn.Module):
                    for table in MODULE_TABLES:
                        yield from self._attributes(node, entries.get(table), table)
            for name, old in self.before.slots.get(key, {}).items():
                now = Slot(name).get(obj)
                amounts = self.accumulators.amounts.get(self.before.key(obj, Slot(name)))
                write = SetSlot(name) if amounts is None else AddSlot(name)
                value = now if amounts is None else amounts
                if not self.notes.unchanged(old, now):
                    yield Effect(node.path, "attribute", name, obj, write, value, self._source(obj, name))

    def _source(self, obj: Any, name: str) -> Source:
        return self.sources.get((id(obj), name), UNKNOWN_SOURCE)

    def _attributes(self, node: Node, entries: Any, table: str | None) -> Iterator[Effect]:
        """The changed attributes of an object; table: they are in this table of a module's."""
        obj = node.obj
        copy = self.before.copies.get(id(entries))
        if copy is None:
            if table is None:
                yield Effect(node.path, "attribute", "__dict__", obj, None, entries)
            return
        self.attributes.add(id(entries))
        if copy.same():
            return
        where = InstanceKeys() if table is None else Attribute(table)
        for name, last in self._changed_keys(copy):
            amounts = self.accumulators.amounts.get((id(entries), name))
            write = SetEntry(where, name, last) if amounts is None else AddEntry(where, name)
            value = dict.get(entries, name, ABSENT) if amounts is None else amounts
            yield Effect(node.path, "attribute", name, obj, write, value, self._source(obj, name))

    def _containers(self) -> Iterator[Effect]:
        for key, copy in list(self.before.copies.items()):
            node = self.notes.nodes.get(key)
            if node is None or node.obj is not copy.live or key in self.attributes:
                continue
            live, grown = copy.live, self.accumulators.grown.get(key)
            if grown is None and copy.same():
                continue
            if isinstance(copy.content, dict):
                changed = self._changed_keys(copy) if grown is None else [(name, False) for name in grown]
                for name, last in changed:
                    amounts = self.accumulators.amounts.get((key, name))
                    write = SetEntry(None, name, last) if amounts is None else AddEntry(None, name)
                    value = dict.get(live, name, ABSENT) if amounts is None else amounts
                    yield Effect(node.path, "item", name, live, write, value)
            elif grown is not None:
                yield Effect(node.path, "contents", None, live, Extend(), self._added(live, copy.content, grown))
            else:
                start = self._common(copy.content, live) if isinstance(live, list) else 0
                elements = list(own_iter(live))
                if start < max(len(elements), len(copy.content)) or isinstance(live, set):
                    yield Effect(node.path, "contents", None, live, SetTail(start), elements[start:])

    def _facts(self) -> Iterator[Effect]:
        """What changed where no copies are: globals, closure cells, parts of functions and of other objects."""
        done: set[Key] = set()
        for fact, (node, _) in zip(self.notes.facts, self.notes.found, strict=True):
            now = fact.step.get(node.obj)
            if isinstance(fact.expectation, ArrayOf) and not fact.expectation.matches(now):
                yield Effect(fact.path, "contents", None, now, None, None)
        found = zip(self.notes.facts, self.notes.found, strict=True)
        for node, step, value in (*((n, fact.step, v) for fact, (n, v) in found), *self.notes.stored):
            obj, path = node.obj, node.path
            if issubclass(type(obj), torch.Generator):
                continue  # the recorder knows what was drawn
            if isinstance(step, Asked) and isinstance(value, torch.Tensor):
                continue  # made of what is there, of which there is a copy
            now = behind(step.get(obj))
            if self.notes.unchanged(value, now) or (type(value) is tuple and Constant(value).matches(now)):
                continue
            key = self.before.key(obj, step)
            if key in done or self.before.has_copy(obj, step):
                continue
            done.add(key)
            amounts = self.accumulators.amounts.get(key)
            if isinstance(step, Item):
                write: Write = SetEntry(None, step.key) if amounts is None else AddEntry(None, step.key)
                yield Effect(path, "global", step.key, obj, write, now if amounts is None else amounts)
            elif isinstance(step, Attribute):
                yield Effect(path, "attribute", step.name, obj, SetEntry(InstanceKeys(), step.name), now)
            elif isinstance(step, Closure):
                write = SetCell(step.index, amounts is not None)
                yield Effect(path, "closure", step.name, obj, write, now if amounts is None else amounts)
            elif step == GRAD and isinstance(obj, torch.Tensor):
                yield Effect(path, "attribute", "grad", obj, SetSlot("grad"), now)
            elif not isinstance(step, Lookup):
                yield Effect(path, "attribute", getattr(step, "name", str(path.then(step))), obj, None, None)

    def _classes(self) -> Iterator[Effect]:
        """Class attributes that differ from what they were when the class was met."""
        for cls, entries in self.classes.items():
            for name in sorted(entries.keys() | cls.__dict__.keys()):
                now = cls.__dict__.get(name, ABSENT)
                if now is not entries.get(name, ABSENT) and name not in PATCHED_NAMES:
                    path = Path(None, Root(cls.__qualname__, id(cls)))
                    yield Effect(path, "class", name, cls, SetClass(name), now)

    def _tensors(self, grad_mode: bool) -> Iterator[Effect]:
        """Tensors whose shape, strides, dtype or `requires_grad` is not what it was when they were met, and those
        that were given attributes."""
        for node, old in self.notes.metadata:
            if not old.matches(node.obj):
                now = TensorOf.of(node.obj, grad_mode)
                yield Effect(node.path, "metadata", "metadata", node.obj, None, now)
            if id(node.obj) not in self.before.instances:
                for name, value in (instance_dict(node.obj) or {}).items():
                    yield Effect(node.path, "attribute", name, node.obj, SetEntry(InstanceKeys(), name), value)

    def _changed_keys(self, copy: Copy) -> list[tuple[Any, bool]]:
        """Keys whose entries changed, and whether they moved to the end (of an order that setting them makes)."""
        old, live = copy.content, copy.live
        assert isinstance(old, dict)
        now = list(own_iter(live))
        left = iter(old)
        staying = 0
        for key in now:
            if not any(key is other for other in left):
                break
            staying += 1
        changed = [(key, False) for key in old if key not in live]
        for position, key in enumerate(now):
            value = dict.__getitem__(live, key)
            if position >= staying:
                changed.append((key, key in old))
            elif not self.notes.unchanged(old[key], value):
                changed.append((key, False))
        return changed

    def _added(self, live: Any, before: list[Any], grown: tuple[Any, ...]) -> list[Any]:
        """The elements that were added to a list, a deque or a set."""
        if isinstance(live, set):
            return list(grown)
        return list(own_iter(live))[len(before) if isinstance(live, list) else len(live) - grown[0] :]

    def _common(self, old: Iterable[Any], live: list[Any]) -> int:
        """How many elements at the start are still the same."""
        count = 0
        for a, b in zip(old, list.__iter__(live), strict=False):
            if not self.notes.unchanged(a, b):
                break
            count += 1
        return count


def changing_facts(notes: Notes, effects: Iterable[Effect]) -> frozenset[int]:
    """Positions of the facts about what each call writes, about what is reached through that, and about what no table
    of identities can hold."""
    owners = {id(effect.owner) for effect in effects if effect.kind == "contents"}
    places = {written_place(effect.write, effect.owner) for effect in effects if effect.write is not None}
    found: set[int] = set()
    slots: set[int] = set()
    for position, (fact, (node, _)) in enumerate(zip(notes.facts, notes.found, strict=True)):
        expectation = fact.expectation
        through = fact.parent in slots or (isinstance(expectation, SameAs) and expectation.slot in slots)
        free = isinstance(expectation, NumberOf | OpenNumber | Present)
        loose = free or isinstance(fact.step, Asked) or fact.step == GRAD
        if through or loose or id(node.obj) in owners or notes.before.key(node.obj, fact.step) in places:
            found.add(position)
            if fact.slot >= 0:
                slots.add(fact.slot)
    return frozenset(found)


def stored_attribute(obj: object, name: str) -> Any:
    """What is stored under an attribute's name: in the `__dict__`, in a module's tables, or in a slot."""
    entries = instance_dict(obj)
    if entries is not None:
        if name in entries:
            return entries[name]
        if issubclass(type(obj), torch.nn.Module):
            for table in MODULE_TABLES:
                if name in entries.get(table, ()):
                    return entries[table][name]
    entry = static_lookup(type(obj), name)
    if type(entry) is types.MemberDescriptorType or name == "__class__":
        return Slot(name).get(obj)
    return ABSENT
