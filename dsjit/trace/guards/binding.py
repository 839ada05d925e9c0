"""Binds the facts of a guard to the objects that met them: a table for the native loop (`trace.guards.native_loop`)."""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dsjit.trace.guards.table import RowKind, TableBuilder, row_operand, set_row_operand
from dsjit.trace.guards.tensor_layout import INLINE_DIMENSIONS, TensorLayout
from dsjit.trace.guards.version_tags import type_version
from dsjit.trace.reads.facts import ArrayOf, Constant, Fact, TensorOf
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
    Referent,
    Slot,
    instance_dict,
)

__all__ = ["Binder", "Binding"]


@dataclass(slots=True)
class Binding:
    """table: for the native loop. pinned: constants whose addresses the table holds.

    classes: number of the row of each class's version tag, the class, and what was found in it.
    """

    table: bytearray
    pinned: list[Any]
    classes: list[tuple[int, type, list[tuple[Fact, Any]]]]

    def renew_versions(self) -> bool:
        """Note new version tags of classes that changed and changed back, or changed where it does not matter.

        Returns whether a tag was noted anew. Tracing another function changes the tags of the classes it meets.
        """
        renewed = False
        for row, cls, found in self.classes:
            version = type_version(cls)
            if version == row_operand(self.table, row):
                continue
            if not version or any(fact.step.get(cls) is not value for fact, value in found):
                return False
            set_row_operand(self.table, row, version)
            renewed = True
        return renewed


@dataclass(slots=True)
class Binder:
    """Makes the tables of one guard.

    facts: to be checked natively, by the slot that they read from; a slot without facts is checked for its type.
    layout: where a tensor's metadata is.
    probes: functions without arguments that have to answer with the very object (True, None, a small number).
    residual: facts that the native loop cannot check, by identity; filled by `bind`.
    """

    facts: Mapping[int, Sequence[Fact]]
    layout: TensorLayout
    probes: tuple[tuple[Callable[[], Any], Any], ...]
    residual: dict[int, Fact]

    def bind(
        self,
        slots: Sequence[Any],
        metadata: Mapping[int, Fact],
        out_count: int,
        arguments: Sequence[int],
        bound: Sequence[tuple[int, int]],
    ) -> Binding:
        """A table for the objects in `slots`, which have just met every fact.

        metadata: the facts that tell what tensors are, by the tensor's slot.
        out_count: input tensors of the Graph. arguments: the positions among them of those that are handed to the
        loop. bound: position and slot of the others.
        """
        job = _Job(self, slots, TableBuilder(), [], [])
        for probe, answer in self.probes:
            job.table.row(RowKind.CALL, id(probe), id(answer))
        for slot in sorted({*self.facts, *metadata}):
            if slot in metadata:
                job.tensor(slots[slot], metadata[slot])
            if slot in self.facts:
                job.object(slots[slot], self.facts[slot])
        addresses = [(position, id(slots[slot])) for position, slot in bound]
        return Binding(job.table.pack(out_count, arguments, addresses), job.pinned, job.classes)


@dataclass(slots=True)
class _Job:
    binder: Binder
    slots: Sequence[Any]
    table: TableBuilder
    pinned: list[Any]
    classes: list[tuple[int, type, list[tuple[Fact, Any]]]]

    def tensor(self, tensor: torch.Tensor, fact: Fact) -> None:
        """The metadata of a tensor that is reached through the table."""
        expectation = fact.expectation
        assert isinstance(expectation, TensorOf)
        if tensor.layout is torch.strided and tensor.ndim <= INLINE_DIMENSIONS:
            self.table.tensor(self.binder.layout, tensor)
        else:
            self.binder.residual[id(fact)] = fact
        if expectation.requires_grad is not None:
            self.slot(tensor, "requires_grad", tensor.requires_grad)

    def object(self, obj: Any, facts: Sequence[Fact]) -> None:
        """Everything noted about one object."""
        if isinstance(obj, type):
            self.cls(obj, facts)
            return
        attributes = [(fact.step.name, fact) for fact in facts if isinstance(fact.step, Attribute)]
        names = [fact for fact in facts if isinstance(fact.step, InstanceKeys)]
        items = [(fact.step.key, fact) for fact in facts if isinstance(fact.step, Item)]
        keys = [fact for fact in facts if isinstance(fact.step, Keys)]
        entries = instance_dict(obj) if attributes or names else None
        if entries is not None or not (items or keys):
            self.table.row(RowKind.OBJECT, id(obj), id(type(obj)), 0 if entries is None else id(entries))
        if entries is not None:
            self.dictionary(entries, attributes, bool(names))
        if items or keys:
            self.dictionary(obj, items, bool(keys))
            if isinstance(obj, OrderedDict) and len(obj) > 1:
                self.leave(keys)  # move_to_end changes neither the entries nor the version
        if isinstance(obj, types.FunctionType):
            self.function(obj)
        for fact in facts:
            self.element(obj, fact)

    def cls(self, cls: type, facts: Sequence[Fact]) -> None:
        """What lookup finds in a class: one version tag stands for all of it."""
        version = type_version(cls)
        if version:
            row = self.table.row(RowKind.TYPE_VERSION, id(cls), version)
            self.classes.append((row, cls, [(fact, self.value(fact)) for fact in facts]))
        else:
            self.leave(facts)

    def element(self, obj: Any, fact: Fact) -> None:
        """One fact about what is not in a dictionary."""
        step = fact.step
        if isinstance(step, Slot):
            if not isinstance(obj, types.FunctionType):
                self.slot(obj, step.name, self.value(fact))
        elif isinstance(step, Closure):
            cell = obj.__closure__[step.index]
            self.table.row(RowKind.TUPLE_ITEM, id(obj.__closure__), step.index, id(cell))
            self.table.row(RowKind.CELL, id(cell), 0, self.address(fact))
        elif isinstance(step, Length) and isinstance(obj, list | tuple):
            self.table.row(RowKind.LENGTH, id(obj), len(obj))
        elif isinstance(step, Index) and isinstance(obj, list | tuple):
            kind = RowKind.LIST_ITEM if isinstance(obj, list) else RowKind.TUPLE_ITEM
            self.table.row(kind, id(obj), step.index, self.address(fact))
        elif isinstance(step, Contents) and all(type(item) is str or isinstance(item, type) for item in obj):
            # Elements of other types may equal elements of yet other types (1, 1.0 and True).
            self.elements(obj)
        elif isinstance(step, Referent):
            # The call says None once the referent is gone, so that no later row reads from where it was.
            self.table.row(RowKind.CALL, id(obj), self.address(fact) or id(None))
        elif isinstance(step, Contents | Member | Length | Index):
            self.leave([fact])

    def dictionary(self, entries: dict[Any, Any], items: list[tuple[Any, Fact]], whole: bool) -> None:
        """Entries of one dictionary; and with `whole`, that it has no others, and their order."""
        now = tuple(dict.__iter__(entries)) if whole else None
        self.pinned += [now, *(key for key, _ in items)]
        pairs = [(id(key), self.address(fact)) for key, fact in items]
        self.table.dictionary(entries, pairs, None if now is None else [id(key) for key in now])

    def function(self, function: types.FunctionType) -> None:
        """Code, defaults and closure."""
        parts = (function.__code__, function.__defaults__, function.__kwdefaults__)
        self.pinned.append(parts[:2])
        self.table.row(RowKind.FUNCTION, id(function), *(0 if part is None else id(part) for part in parts))
        if function.__closure__ is not None:
            self.table.row(RowKind.CLOSURE, id(function), id(function.__closure__))

    def elements(self, elements: set[Any] | frozenset[Any]) -> None:
        self.table.row(RowKind.SET_SIZE, id(elements), len(elements))
        for element in elements:
            self.pinned.append(element)
            self.table.row(RowKind.SET_HAS, id(elements), id(element))

    def slot(self, obj: Any, name: str, value: Any) -> None:
        self.pinned.append(name)
        self.table.row(RowKind.SLOT, id(obj), id(name), 0 if value is ABSENT else id(value))

    def leave(self, facts: Iterable[Fact]) -> None:
        """Left to be checked in Python on each call."""
        for fact in facts:
            self.binder.residual[id(fact)] = fact

    def value(self, fact: Fact) -> Any:
        value = fact.step.get(self.slots[fact.parent])
        if isinstance(fact.expectation, Constant):
            self.pinned.append(value)
        elif isinstance(fact.expectation, ArrayOf):
            self.leave([fact])  # the same array may hold other content
        return value

    def address(self, fact: Fact) -> int:
        value = self.value(fact)
        return 0 if value is ABSENT else id(value)
