"""What Python state was before the call: copies of what the traced code met, taken when it was met.

Reads are noted when they are seen, which may be after the call has changed what they read; the copies tell what a
guard has to expect. At the end, what differs from its copy is what the call changed, by whatever way it did.
"""

from __future__ import annotations

import operator
import types
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch

from dsjit.trace.reads.paths import (
    ABSENT,
    Attribute,
    Closure,
    Contents,
    Index,
    InstanceKeys,
    Item,
    Keys,
    Length,
    Member,
    Slot,
    Step,
    instance_dict,
    static_lookup,
)

__all__ = ["MODULE_TABLES", "Before", "Copy", "Key", "own_iter"]

Key: TypeAlias = tuple[int, Any]
"""Where something is stored, by whatever path it is reached: the id of a dictionary, an object or a closure cell, and
the key or name under which it is there."""

MODULE_TABLES: Final = ("_parameters", "_buffers", "_modules")
"""Where `nn.Module.__getattr__` looks, in its order."""

_KINDS: Final = (list, tuple, OrderedDict, dict, set, frozenset, deque)


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """content: of `live` when it was met: a dict, or a list of its elements."""

    live: Any
    content: dict[Any, Any] | list[Any]

    def same(self) -> bool:
        """Whether `live` still holds the very same objects, in the same order."""
        content, live = self.content, self.live
        if isinstance(content, dict):
            return (
                len(content) == dict.__len__(live)
                and all(map(operator.is_, content, own_iter(live)))
                and all(map(operator.is_, content.values(), dict.values(live)))
            )
        now = list(own_iter(live))
        return len(now) == len(content) and all(map(operator.is_, now, content))

    def identities(self) -> tuple[tuple[int, ...], ...]:
        """Which objects `live` holds now."""
        live = self.live
        values = list(dict.values(live)) if isinstance(live, dict) else []
        return tuple(map(id, own_iter(live))), tuple(map(id, values))


def own_iter(container: Any) -> Any:
    """Iterates over a container, or the keys of a dictionary, without running code of its class's own."""
    kind = type(container)
    native = kind if kind in _KINDS else next(base for base in _KINDS if issubclass(kind, base))
    return native.__iter__(container)


class Before:
    """copies: of containers and attribute dictionaries, by the id of what was copied.

    instances: objects of which the attributes were copied, with their class, by id. slots: what their slots held.
    """

    def __init__(self) -> None:
        self.copies: dict[int, Copy] = {}
        self.instances: dict[int, tuple[Any, type]] = {}
        self.slots: dict[int, dict[str, Any]] = {}
        self._first: dict[Key, tuple[Any, Any]] = {}

    def take_container(self, container: Any) -> None:
        """Copy a list, tuple, dictionary, set or deque."""
        if id(container) in self.copies:
            return
        content: Any
        if isinstance(container, OrderedDict):
            content = {key: dict.__getitem__(container, key) for key in own_iter(container)}
        elif isinstance(container, dict):
            content = dict.copy(container)
        else:
            content = list(own_iter(container))
        self.copies[id(container)] = Copy(container, content)

    def take_instance(self, obj: Any) -> None:
        """Copy an object's attributes, a module's tables included."""
        if id(obj) in self.instances:
            return
        self.instances[id(obj)] = obj, type(obj)
        entries = instance_dict(obj)
        if entries is not None:
            self.take_container(entries)
            if isinstance(obj, torch.nn.Module):
                for table in MODULE_TABLES:
                    if isinstance(entries.get(table), dict):
                        self.take_container(entries[table])
        slots = {name: Slot(name).get(obj) for name in slot_names(type(obj))}
        if slots:
            self.slots[id(obj)] = slots

    def changes(self) -> Hashable:
        """What is now otherwise than it was: equal at two moments when nothing was changed between them."""
        held = [
            (name, id(obj), id(Slot(name).get(obj)))
            for key, values in self.slots.items()
            for obj in (self.instances[key][0],)
            for name, value in values.items()
            if Slot(name).get(obj) is not value
        ]
        return *held, *[(key, copy.identities()) for key, copy in self.copies.items() if not copy.same()]

    def gradients(self) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """The tensors whose `.grad` was met, and what it was."""
        found = [(obj, held) for (_, step), (obj, held) in self._first.items() if step == Slot("grad")]
        return [(obj, held) for obj, held in found if isinstance(obj, torch.Tensor)]

    def content(self, container: Any) -> dict[Any, Any] | list[Any]:
        """What a container held when it was met (which is now, unless it was copied before)."""
        self.take_container(container)
        return self.copies[id(container)].content

    def has_copy(self, obj: Any, step: Step) -> bool:
        """Whether comparing with a copy tells if `step` from `obj` finds something else now."""
        if isinstance(step, Attribute):
            return id(instance_dict(obj)) in self.copies
        if isinstance(step, Slot):
            return step.name in self.slots.get(id(obj), ())
        if isinstance(step, InstanceKeys):
            return True
        return isinstance(step, Item | Index | Length | Keys | Contents | Member) and id(obj) in self.copies

    def key(self, obj: Any, step: Step) -> Key:
        """Where `step` from `obj` reads."""
        if isinstance(step, Attribute):
            entries = instance_dict(obj)
            return id(obj if entries is None else entries), step.name
        if isinstance(step, Item):
            return id(obj), step.key
        if isinstance(step, Closure):
            return id(obj.__closure__[step.index]), None
        return id(obj), step

    def original(self, obj: Any, step: Step, found: Any) -> Any:
        """What `step` from `obj` found before the call; `found` is what it finds now."""
        if isinstance(step, Attribute | Item):
            entries = instance_dict(obj) if isinstance(step, Attribute) else obj
            copy = self.copies.get(id(entries))
            if copy is not None and isinstance(copy.content, dict):
                return copy.content.get(step.name if isinstance(step, Attribute) else step.key, ABSENT)
        elif isinstance(step, Slot):
            slots = self.slots.get(id(obj))
            if slots is not None and step.name in slots:
                return slots[step.name]
        elif not isinstance(step, Closure):
            return found
        return self._first.setdefault(self.key(obj, step), (obj, found))[1]


def slot_names(cls: type) -> tuple[str, ...]:
    """The attributes that instances keep in slots."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            own = f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
            if type(static_lookup(cls, own)) is types.MemberDescriptorType:
                names[own] = None
    return tuple(names)
