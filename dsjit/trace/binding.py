"""Binds the facts of a guard to the objects that met them: a table for the native loop (`trace.native_guard`)."""

from __future__ import annotations

import struct
import types
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dsjit.trace.facts import Constant, Fact, TensorOf
from dsjit.trace.native_guard import (
    RowKind,
    TableBuilder,
    dict_version,
    dict_versions_work,
    row_operand,
    set_row_operand,
    type_version,
)
from dsjit.trace.paths import (
    ABSENT,
    Attribute,
    Closure,
    Contents,
    Index,
    InstanceKeys,
    Item,
    Keys,
    Length,
    Lookup,
    Slot,
    instance_dict,
)
from dsjit.trace.tensor_layout import INLINE_DIMENSIONS, TensorLayout

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
    residual: facts that the native loop cannot check, by identity; filled by `bind`.
    """

    facts: Mapping[int, Sequence[Fact]]
    layout: TensorLayout
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
        kind = type(obj)
        by_step: dict[type, list[Fact]] = defaultdict(list)
        for fact in facts:
            by_step[type(fact.step)].append(fact)
        if Lookup in by_step:
            version = type_version(obj)
            if version:
                row = self.table.row(RowKind.TYPE_VERSION, id(obj), version)
                self.classes.append((row, obj, [(fact, fact.step.get(obj)) for fact in by_step[Lookup]]))
            else:
                self.leave(by_step[Lookup])
        attributes = [*by_step[Attribute], *by_step[InstanceKeys]]
        entries = instance_dict(obj) if attributes else None
        if not isinstance(obj, type):
            self.table.row(RowKind.OBJECT, id(obj), id(kind), 0 if entries is None else id(entries))
        if entries is not None:
            self.dictionary(entries, [(fact.step.name, fact) for fact in by_step[Attribute]], by_step[InstanceKeys])
        if isinstance(obj, dict):
            self.dictionary(obj, [(fact.step.key, fact) for fact in by_step[Item]], by_step[Keys])
            if isinstance(obj, OrderedDict) and len(obj) > 1:
                self.leave(by_step[Keys])  # move_to_end changes neither the entries nor the version
        elif isinstance(obj, list | tuple):
            item = RowKind.LIST_ITEM if isinstance(obj, list) else RowKind.TUPLE_ITEM
            if by_step[Length]:
                self.table.row(RowKind.LENGTH, id(obj), len(obj))
            for fact in by_step[Index]:
                self.table.row(item, id(obj), fact.step.index, self.address(fact))
        else:
            self.leave([*by_step[Length], *by_step[Index]])
        if isinstance(obj, types.FunctionType):
            self.function(obj, by_step[Closure])
        if isinstance(obj, set | frozenset) and by_step[Contents]:
            self.elements(obj)
        else:
            self.leave(by_step[Contents])
        for fact in by_step[Slot]:
            if not isinstance(obj, types.FunctionType):
                self.slot(obj, fact.step.name, self.value(fact))
        handled = {Lookup, Attribute, InstanceKeys, Item, Keys, Length, Index, Closure, Contents, Slot}
        self.leave([fact for step, found in by_step.items() if step not in handled for fact in found])

    def dictionary(self, entries: dict[Any, Any], items: list[tuple[Any, Fact]], keys: Sequence[Fact]) -> None:
        """Entries of one dictionary, behind its version tag."""
        if not items and not keys:
            return
        version = dict_version(entries) if dict_versions_work() else 0
        head = self.table.row(RowKind.DICT, id(entries), version, id(type(entries)))
        if keys:
            now = tuple(dict.__iter__(entries))
            self.pinned.append(now)
            blob = struct.pack(f"{len(now)}Q", *map(id, now))
            self.table.blob_row(RowKind.DICT_KEYS, 1, blob, id(entries), 0, 0, len(now))
        for key, fact in items:
            self.pinned.append(key)
            self.table.row(RowKind.DICT_ITEM, id(entries), id(key), self.address(fact))
        if version:
            self.table.row(RowKind.DICT_END, id(entries), head)
        kind, a, b, c, _ = self.table.rows[head]
        self.table.rows[head] = (kind, a, b, c, len(self.table.rows) - 1 - head)

    def function(self, function: types.FunctionType, closure: Sequence[Fact]) -> None:
        """Code, defaults and closure. The cells are the function's for life, so their addresses need no check."""
        parts = (function.__code__, function.__defaults__, function.__kwdefaults__)
        self.pinned.append(parts[:2])
        self.table.row(RowKind.FUNCTION, id(function), *(0 if part is None else id(part) for part in parts))
        for fact in closure:
            assert isinstance(fact.step, Closure) and function.__closure__ is not None
            cell = function.__closure__[fact.step.index]
            self.table.row(RowKind.CELL, id(cell), 0, self.address(fact))

    def elements(self, elements: set[Any] | frozenset[Any]) -> None:
        """The elements of a set. Those that compare equal to others of another type are compared in Python."""
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
        return value

    def address(self, fact: Fact) -> int:
        value = self.value(fact)
        return 0 if value is ABSENT else id(value)
