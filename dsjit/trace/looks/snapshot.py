"""What code could read at a look, told so that equal descriptions mean: Python does the same from here on."""

from __future__ import annotations

import struct
import types
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch

from dsjit.ir.graph import Arg, Node, Value
from dsjit.trace.looks.iterators import UnknownIterator, describe_iterator
from dsjit.trace.numbers.numbers import Numbers
from dsjit.trace.numbers.tables import plain
from dsjit.trace.reads.facts import is_constant
from dsjit.trace.reads.paths import instance_dict
from dsjit.trace.recording.memory import Memory, Storage, TracedTensor

__all__ = ["Activation", "Known", "Snapshot", "Tell"]

Tell: TypeAlias = Callable[[object], Hashable | None]
"""Tells an object that existed before the call from all others; None when it cannot."""

_BUILT_IN: Final = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)


@dataclass(frozen=True, slots=True)
class Activation:
    """One frame. variables: those that may still be read. dead: what the others hold. stack: the iterators on its value
    stack. operands: of the instruction that looks."""

    frame: types.FrameType
    variables: dict[str, Any]
    dead: tuple[Any, ...]
    stack: list[Any]
    heights: Sequence[int]
    operands: tuple[Any, ...] = ()


class _Unknown(Exception):
    """Something is there of which the state is not known."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is known of the call. existed: whether an object was there before it. tell: names such an object.
    kept: keeps objects alive whose ids are told. of: the tensor that a run of the call has in place of one.
    alone: whether no tensor or number may be alive but in variables, operands and what existed."""

    existed: Callable[[object], bool]
    tell: Tell
    memory: Memory
    numbers: Numbers
    kept: list[Any] = field(default_factory=list)
    of: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    alone: bool = False


class Snapshot:
    """Describes everything by constants, names of what existed before, and numbers in the order of first sight.

    values: in this order.
    """

    def __init__(self, known: Known) -> None:
        self._known = known
        self.values: dict[Value, int] = {}
        self._tensors: dict[TracedTensor, int] = {}
        self._storages: dict[Storage, int] = {}
        self._seen_numbers: dict[int, int] = {}
        self._dead: set[TracedTensor] = set()
        self._given: list[Any] = []
        self._looked: frozenset[TracedTensor] = frozenset()
        self._by_shape = False

    def take(
        self,
        activations: Sequence[Activation],
        looked: Value | None,
        tensors: Sequence[torch.Tensor],
        by_shape: bool = False,
    ) -> tuple[Hashable, Hashable] | None:
        """What there is, and what is looked at; None when not all is known. looked, tensors: see `StateWatch.at_look`.

        by_shape: Python looks at their shapes, which are no part of the state then.
        """
        try:
            self._looked_at(tensors, by_shape)
            told = tuple([self._activation(each) for each in activations])
            for obj in (*[obj for each in activations for obj in each.dead], *self._given):
                self._ignore(obj)
            others = self._other_tensors(), self._other_numbers(looked)
            return (told, others), tuple([self._tensor(tensor) for tensor in tensors])
        except (_Unknown, UnknownIterator):
            return None

    def _activation(self, activation: Activation) -> Hashable:
        variables = activation.variables
        return (
            tuple([self._iterator(each) for each in activation.stack]),
            tuple([self._describe(each) for each in activation.operands]),
            tuple([(name, self._describe(variables[name])) for name in sorted(variables)]),
        )

    def _iterator(self, iterator: Any) -> Hashable:
        return describe_iterator(iterator, self._describe, self._known.existed, self._given.append)

    def _describe(self, obj: Any) -> Hashable:
        kind = type(obj)
        if isinstance(obj, torch.Tensor):
            return self._tensor(obj)
        if self._known.numbers.value(obj) is not None:
            return self._number(obj)
        if kind is tuple or (issubclass(kind, tuple) and kind.__module__ == "torch.return_types"):
            return kind, tuple([self._describe(item) for item in tuple.__iter__(obj)])
        if is_constant(obj):
            return _exact(obj)
        if kind is types.MethodType:
            return kind, self._describe(obj.__func__), self._describe(obj.__self__)
        if kind is slice:
            return kind, self._describe((obj.start, obj.stop, obj.step))
        free = kind in _BUILT_IN and isinstance(getattr(obj, "__self__", None), type | types.ModuleType | None)
        if free or kind is types.ModuleType or self._known.existed(obj):
            return self._old(obj)
        raise _Unknown

    def _old(self, obj: object) -> Hashable:
        told = self._known.tell(obj)
        if told is None:
            raise _Unknown
        self._known.kept.append(obj)
        return "old", told

    # -- tensors -------------------------------------------------------------------------------------------------

    def _tensor(self, tensor: torch.Tensor) -> Hashable:
        existed, name = self._known.existed(tensor), tensor
        tensor = self._known.of(tensor)
        record = self._known.memory.lookup(tensor)
        if record is None:
            if not existed:
                raise _Unknown
            return self._old(name)
        if record in self._tensors:
            return "tensor", self._tensors[record]
        self._tensors[record] = len(self._tensors)
        if not existed and (instance_dict(tensor) or tensor.grad_fn is not None):
            raise _Unknown
        return (
            "tensor",
            type(tensor),
            self._old(name) if existed else None,
            (tensor.requires_grad, tensor.is_conj(), tensor.is_neg(), tensor.is_inference()),
            tensor.storage_offset() - record.storage.offset,
            self._record(record),
            None if existed or tensor._base is None else self._tensor(tensor._base),
        )

    def _record(self, record: TracedTensor | None) -> Hashable:
        """What the tracer knows of a tensor: what it holds, unless memory was written since, and how it is a view."""
        if record is None:
            return None
        view: Hashable = None
        if record.view is not None:
            op, args, kwargs, number, _ = record.view
            arguments = self._argument(args), tuple([(name, self._argument(arg)) for name, arg in kwargs.items()])
            view = id(op), arguments, number
        current = record.version == record.storage.version
        held = self._value(record.value) if current else None
        type_ = record.value.type.dtype if self._by_shape and record in self._looked else record.value.type
        return self._storage(record.storage), type_, held, view, self._record(record.parent)

    def _argument(self, arg: Arg) -> Hashable:
        if isinstance(arg, Value):
            return Value, self._value(arg)
        if isinstance(arg, tuple):
            return tuple([self._argument(item) for item in arg])
        return _exact(arg)

    def _storage(self, storage: Storage) -> Hashable:
        if storage in self._storages:
            return self._storages[storage]
        number = self._storages[storage] = len(self._storages)
        given = None if storage.input is None else self._old(storage.input)
        return number, given, storage.offset, storage.shared, storage.version > 0, self._value(storage.current)

    def _looked_at(self, tensors: Sequence[torch.Tensor], by_shape: bool) -> None:
        records = [self._known.memory.lookup(self._known.of(tensor)) for tensor in tensors]
        self._looked, self._by_shape = frozenset([each for each in records if each is not None]), by_shape

    def _value(self, value: Value) -> int:
        return self.values.setdefault(value, len(self.values))

    def _ignore(self, obj: Any) -> None:
        """What a dead variable holds, with what that holds."""
        if isinstance(obj, tuple):
            for item in obj:
                self._ignore(item)
        elif isinstance(obj, torch.Tensor):
            tensor: torch.Tensor | None = self._known.of(obj)
            while tensor is not None:
                record = self._known.memory.lookup(tensor)
                if record is not None:
                    self._dead.add(record)
                tensor = tensor._base
        elif self._known.numbers.value(obj) is not None:
            self._seen_numbers.setdefault(id(obj), -1)

    def _other_tensors(self) -> Hashable:
        """Those that no variable holds, one by one: whoever holds them is not looked into, and has not moved."""
        old: dict[Hashable, torch.Tensor] = {}
        found: list[Hashable] = []
        for record in list(self._known.memory.tensors.values()):
            tensor = record.reference()
            if tensor is None or record in self._tensors or record in self._dead or record in self._looked:
                continue
            if record.storage.input is tensor and not record.storage.version:
                continue  # nobody has touched it
            if not self._known.alone:
                self._known.kept.append(record)
                found.append((id(record), self._tensor(tensor)))
            elif self._known.existed(tensor):
                old[self._old(tensor)] = tensor
            else:
                raise _Unknown
        return (*found, *[(name, self._tensor(old[name])) for name in sorted(old, key=repr)])

    # -- numbers -------------------------------------------------------------------------------------------------

    def _number(self, number: float) -> Hashable:
        if id(number) in self._seen_numbers:
            return "number", self._seen_numbers[id(number)]
        self._seen_numbers[id(number)] = len(self._seen_numbers)
        value, bound, pinned = self._known.numbers.describe(number)
        return "number", self._value(value), bound, _exact(plain(number)) if pinned else None

    def _other_numbers(self, looked: Value | None) -> Hashable:
        """Those that no variable holds; the operands of the look will be gone after it."""
        operands = set(_operands(self._known.memory.nodes, looked)) if looked is not None else set()
        found: list[Hashable] = []
        for number, value, entry in self._known.numbers.held():
            if id(number) not in self._seen_numbers and value not in operands:
                if self._known.alone:
                    raise _Unknown
                self._known.kept.append(entry)
                found.append((id(entry), self._number(number)))
        return tuple(found)


def _exact(constant: Any) -> Hashable:
    kind = type(constant)
    if kind is float:
        return kind, struct.pack("<d", constant)
    if kind is complex:
        return kind, struct.pack("<dd", constant.real, constant.imag)
    return kind, repr(constant) if kind in (slice, range, frozenset) else constant


def _operands(nodes: Sequence[Node], looked: Value) -> Iterable[Value]:
    made = next((node for node in reversed(nodes) if looked in node.outputs), None)
    return () if made is None else made.inputs()
