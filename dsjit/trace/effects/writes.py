"""Writes: how a compiled call does to Python state what the traced call did.

They set what is stored, below `__setattr__` and `__setitem__`: whatever those do, the effects of that are among the
writes as well. None of them can fail on the objects for which a guard holds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, TypeAlias

from dsjit.trace.effects.before import Key
from dsjit.trace.reads.paths import ABSENT, Attribute, InstanceKeys, Lookup, Slot, instance_dict, static_lookup

__all__ = [
    "AddEntry",
    "AddSlot",
    "Extend",
    "SetCell",
    "SetClass",
    "SetData",
    "SetEntry",
    "SetGenerator",
    "SetSlot",
    "SetTail",
    "Write",
    "written_place",
]


def _entries(owner: Any, where: Attribute | InstanceKeys | None) -> dict[Any, Any]:
    """where: None for a dictionary itself, InstanceKeys for an object's attributes, an Attribute for one that is a
    dictionary (the tables of a module)."""
    if where is None:
        entries: dict[Any, Any] = owner
        return entries
    found = instance_dict(owner)
    assert found is not None
    if isinstance(where, InstanceKeys):
        return found
    table: dict[Any, Any] = found[where.name]
    return table


def _set(entries: dict[Any, Any], key: Any, value: Any) -> None:
    put = OrderedDict.__setitem__ if isinstance(entries, OrderedDict) else dict.__setitem__
    put(entries, key, value)


def _sum(total: Any, amounts: tuple[int | float, ...]) -> Any:
    for amount in amounts:
        total += amount
    return total


@dataclass(frozen=True, slots=True)
class SetEntry:
    """`entries[key] = value`, or its deletion when the value is ABSENT. last: the key moves to the end."""

    where: Attribute | InstanceKeys | None
    key: Any
    last: bool = False

    def apply(self, owner: Any, value: Any) -> None:
        entries = _entries(owner, self.where)
        if (value is ABSENT or self.last) and self.key in entries:
            (OrderedDict if isinstance(entries, OrderedDict) else dict).__delitem__(entries, self.key)
        if value is not ABSENT:
            _set(entries, self.key, value)


@dataclass(frozen=True, slots=True)
class AddEntry:
    """`entries[key] += amount`, for each amount in `value`."""

    where: Attribute | InstanceKeys | None
    key: Any

    def apply(self, owner: Any, value: Any) -> None:
        entries = _entries(owner, self.where)
        _set(entries, self.key, _sum(dict.__getitem__(entries, self.key), value))


@dataclass(frozen=True, slots=True)
class SetSlot:
    """Sets or deletes what is stored in a slot."""

    name: str

    def apply(self, owner: Any, value: Any) -> None:
        member = static_lookup(type(owner), self.name)
        if value is not ABSENT:
            member.__set__(owner, value)
        else:
            member.__delete__(owner)


@dataclass(frozen=True, slots=True)
class AddSlot:
    """The same for a number in a slot."""

    name: str

    def apply(self, owner: Any, value: Any) -> None:
        member = static_lookup(type(owner), self.name)
        member.__set__(owner, _sum(member.__get__(owner), value))


@dataclass(frozen=True, slots=True)
class SetCell:
    """Sets or empties a closure cell of a function; with `adds`, adds the amounts in `value` to the number in it."""

    index: int
    adds: bool = False

    def apply(self, owner: Any, value: Any) -> None:
        cell = owner.__closure__[self.index]
        if self.adds:
            value = _sum(cell.cell_contents, value)
        if value is not ABSENT:
            cell.cell_contents = value
        else:
            del cell.cell_contents


@dataclass(frozen=True, slots=True)
class SetClass:
    """Sets or deletes an attribute of a class."""

    name: str

    def apply(self, owner: Any, value: Any) -> None:
        if value is not ABSENT:
            type.__setattr__(owner, self.name, value)
        elif self.name in owner.__dict__:
            type.__delattr__(owner, self.name)


@dataclass(frozen=True, slots=True)
class SetTail:
    """Replaces the elements of a list from `start` on, or all of a deque or set, by those in the list `value`."""

    start: int

    def apply(self, owner: Any, value: Any) -> None:
        if isinstance(owner, list):
            list.__setitem__(owner, slice(self.start, None), value)
        elif isinstance(owner, deque):
            deque.clear(owner)
            deque.extend(owner, value)
        else:
            set.clear(owner)
            set.update(owner, value)


@dataclass(frozen=True, slots=True)
class Extend:
    """Appends elements to a list or a deque, or puts them into a set."""

    def apply(self, owner: Any, value: Any) -> None:
        if isinstance(owner, list):
            list.extend(owner, value)
        elif isinstance(owner, deque):
            deque.extend(owner, value)
        else:
            set.update(owner, value)


@dataclass(frozen=True, slots=True)
class SetGenerator:
    """Puts a random generator into the state `value`."""

    def apply(self, owner: Any, value: Any) -> None:
        owner.set_state(value)


@dataclass(frozen=True, slots=True)
class SetData:
    """Replaces the `.data` of a tensor."""

    def apply(self, owner: Any, value: Any) -> None:
        owner.data = value


Write: TypeAlias = (
    SetEntry | AddEntry | SetSlot | AddSlot | SetCell | SetClass | SetTail | Extend | SetGenerator | SetData
)


def written_place(write: Write, owner: Any) -> Key | None:
    """Where `write` stores; None for all of a container."""
    if isinstance(write, SetEntry | AddEntry):
        return id(_entries(owner, write.where)), write.key
    if isinstance(write, SetSlot | AddSlot):
        return id(owner), Slot(write.name)
    if isinstance(write, SetCell):
        return id(owner.__closure__[write.index]), None
    return (id(owner), Lookup(write.name)) if isinstance(write, SetClass) else None
