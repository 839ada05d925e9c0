"""Notes: the objects that a traced call met, and the facts about them, in the order in which they were found."""

from __future__ import annotations

import array
import contextvars
import enum
import functools
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import numpy
import torch

from dsjit.ir.graph import UNKNOWN_SOURCE, Source
from dsjit.trace.effects.before import Before, Key
from dsjit.trace.reads.cached_functions import is_cached_function
from dsjit.trace.reads.facts import (
    ARGS_SLOT,
    FUNCTION_SLOT,
    KWARGS_SLOT,
    NO_SLOT,
    ArrayOf,
    Constant,
    Expectation,
    Fact,
    FunctionOf,
    Identical,
    Missing,
    NumberOf,
    OfType,
    Present,
    SameAs,
    TensorOf,
    is_constant,
    same_constant,
)
from dsjit.trace.reads.library import is_library_code, is_observable, is_plumbing
from dsjit.trace.reads.paths import (
    ABSENT,
    Asked,
    Attribute,
    Closure,
    Contents,
    Index,
    InstanceKeys,
    Item,
    Keys,
    Length,
    Member,
    Path,
    Referent,
    Root,
    Slot,
    Step,
    instance_dict,
)
from dsjit.trace.recording.source import SourceFinder

__all__ = ["Meetings", "Node", "Notes", "may_change_unseen"]

_CONTAINER_LIMIT: Final = 50_000
"""Elements of containers that one trace may note; above it, the call is not captured."""

_ARRAY_LIMIT: Final = 1 << 16
"""Bytes of an array whose content is guarded."""

_CONTAINERS: Final = (list, tuple, dict, set, frozenset, deque)

_PARTS: Final[dict[type, tuple[Step, ...]]] = {
    types.MethodType: (Slot("__func__"), Slot("__self__")),
    functools.partial: (Slot("func"), Slot("args"), Slot("keywords")),
    property: (Slot("fget"), Slot("fset")),
    staticmethod: (Slot("__func__"),),
    classmethod: (Slot("__func__"),),
    weakref.ReferenceType: (Referent(),),
}
"""Types whose instances are noted by the parts that C code stores in them."""

_OBSERVED_WHOLE: Final = (types.SimpleNamespace, contextvars.ContextVar, torch.Generator, threading.local)
"""Types written in C whose instances are noted by what they answer, or by all their attributes."""

_STATELESS: Final = (
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
)


_ARRAYS: Final = (numpy.ndarray, bytearray, memoryview, array.array)


@dataclass(slots=True, eq=False)
class Node:
    """An object that existed before the trace, the slot and path by which it was met first, and the steps noted.

    origin: slot of the root that the path starts at. light: a container whose contents have not been noted.
    """

    obj: Any
    slot: int
    path: Path
    origin: int
    light: bool = False
    known: set[Step] = field(default_factory=set)


class Meetings(Protocol):
    """Who is told when something is met that needs more than its own notes."""

    def on_class(self, cls: type) -> None: ...

    def on_module(self, module: types.ModuleType) -> None: ...

    def on_function(self, node: Node) -> None: ...

    def on_instance(self, node: Node) -> None: ...

    def on_variable(self, node: Node, step: Item | Closure, value: Any, code: types.CodeType) -> bool:
        """`code` uses a global or closure variable: whether it only adds or stores to it, so that it is noted."""
        ...

    def on_problem(self, reason: str) -> None: ...


class TracedNumbers(Protocol):
    """What is known of the numbers that a call took out of tensors."""

    def is_traced(self, number: object) -> bool: ...

    def last_addition(self, number: object) -> tuple[Any, Any]:
        """What `number` was before an amount was added to it, and the amount; ABSENT twice when it is no such sum."""
        ...

    def added(self, number: object, before: object) -> Any:
        """The amount, if it was added to `before`; else ABSENT."""
        ...


class NoNumbers:
    """The numbers of a call that took none."""

    def is_traced(self, number: object) -> bool:
        return False

    def last_addition(self, number: object) -> tuple[Any, Any]:
        return ABSENT, ABSENT

    def added(self, number: object, before: object) -> Any:
        return ABSENT


class Notes:
    """nodes: by the object's id. facts, found: each fact with the node it reads from and the value it found.

    roots: objects that a guard holds itself, by slot. metadata: tensors met, with what they were then.
    before: what was there before the call, which is what facts are about. plain: places of which the value was noted.
    stored: variables that were stored to, and read by nothing: node, step, and what was there.
    source: the line of the user's that reads what is noted; None when it is still to be found on the stack.
    held: objects without a node that the guard holds itself. numbers: those that the call took out of tensors.
    """

    def __init__(self, meetings: Meetings, grad_mode: bool) -> None:
        self.nodes: dict[int, Node] = {}
        self.cached_functions: dict[int, Node] = {}
        self.facts: list[Fact] = []
        self.found: list[tuple[Node, Any]] = []
        self.roots: dict[int, Any] = {}
        self.slot_count = 0
        self.metadata: list[tuple[Node, TensorOf]] = []
        self.before = Before()
        self.plain: set[Key] = set()
        self.stored: list[tuple[Node, Step, Any]] = []
        self.held: dict[int, Any] = {}
        self.source: Source | None = UNKNOWN_SOURCE
        self._sources = SourceFinder()
        self.numbers: TracedNumbers = NoNumbers()
        self.on_fact: Callable[[int], None] = lambda position: None
        self.open_owners: frozenset[Path] = frozenset()
        self._meetings = meetings
        self._grad_mode = grad_mode
        self._elements = 0

    def meet_call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note the roots of the call. Must come first."""
        roots = (("args", args), ("kwargs", kwargs), (_label(function), function))
        nodes = [self._new_node(obj, Path(None, Root(label)), None) for label, obj in roots]
        assert [node.slot for node in nodes] == [ARGS_SLOT, KWARGS_SLOT, FUNCTION_SLOT]
        for node in nodes:
            self.explore(node)

    def node_of(self, obj: object) -> Node | None:
        """The node of an object that was met."""
        node = self.nodes.get(id(obj))
        return node if node is not None and node.obj is obj else None

    def root_node(self, obj: Any, label: str) -> Node:
        """The node of an object that the guard holds itself: a class, a module, a dictionary of globals."""
        node = self.nodes.get(id(obj))
        if node is None:
            node = self._new_node(obj, Path(None, Root(label, id(obj))), None)
            self.roots[node.slot] = obj
        return node

    # ---------------------------------------------------------------- facts

    def guarded_facts(self, with_gradients: bool) -> tuple[Fact, ...]:
        """Every fact. with_gradients: `requires_grad` counts in any grad mode, since the code asked for it."""
        if not with_gradients or self._grad_mode:
            return tuple(self.facts)
        met = {id(expectation): TensorOf.of(node.obj, True) for node, expectation in self.metadata}
        return tuple(replace(fact, expectation=met.get(id(fact.expectation), fact.expectation)) for fact in self.facts)

    def note(self, node: Node, step: Step, value: Any) -> None:
        """`step` from `node` finds `value`: record what was there before the call, once, and look into it."""
        self.plain.add(self.before.key(node.obj, step))
        if step not in node.known:
            value = self.before.original(node.obj, step, value)
            path = node.path.then(step)
            expectation, child = self._expect(value, path, node.origin)
            self._record(node, step, expectation, value, NO_SLOT if child is None else child.slot, path)
            if child is not None:
                self.explore(child)
            elif type(expectation) is Constant:
                self.on_fact(len(self.facts) - 1)
        met = self.nodes.get(id(value))
        if met is not None and met.light and met.obj is value:
            self.explore(met)

    def note_light(self, node: Node, step: Step, container: Any) -> bool:
        """The same for a container of which the contents may not matter; False when they were noted already."""
        met = self.nodes.get(id(container))
        if step in node.known or met is not None:
            return met is not None and met.light and met.obj is container
        if self.before.original(node.obj, step, container) is not container:
            return False
        path = node.path.then(step)
        if path in self.open_owners:
            return False
        child = self._new_node(container, path, node.origin)
        child.light = True
        self._record(node, step, OfType(type(container)), container, child.slot, path)
        self.before.take_container(container)
        return True

    def note_entry(self, container: Node, key: Any) -> None:
        """What a dictionary holds under `key`, or whether an element is in a set."""
        content = self.before.content(container.obj)
        if isinstance(content, dict):
            self.note(container, Item(key), content.get(key, ABSENT))
        elif Member(key) not in container.known:
            self.note_keys(container, Member(key), key in content)

    def note_number(self, node: Node, step: Step, number: int | float) -> None:
        """A number of this type is there, whatever its value."""
        self._record(node, step, NumberOf(type(number)), number, NO_SLOT, node.path.then(step))

    def note_presence(self, node: Node, step: Step, value: Any) -> None:
        """Something is there, or nothing."""
        if step not in node.known:
            value = self.before.original(node.obj, step, value)
            expectation = Missing() if value is ABSENT else Present()
            path = node.path.then(step)
            self.facts.append(Fact(node.slot, step, expectation, NO_SLOT, path, self._reader()))
            self.found.append((node, value))

    def note_cached_function(self, node: Node, step: Step, value: Any) -> None:
        """A function with a cache, whose calls by this name are watched."""
        if step in node.known:
            return
        path = node.path.then(step)
        known = self.cached_functions.get(id(value))
        if known is not None:
            self._record(node, step, SameAs(known.slot, known.path), value, NO_SLOT, path)
            return
        child = self.cached_functions[id(value)] = Node(value, self.slot_count, path, node.origin)
        self.slot_count += 1
        self._record(node, step, Identical(value), value, child.slot, path)

    def note_shallow(self, node: Node, step: Step, value: Any) -> None:
        """The same for library state: constants by value, anything else by identity, and no look inside."""
        if step not in node.known:
            expectation = Constant(value) if is_constant(value) else Identical(value)
            self._record(node, step, expectation, value, NO_SLOT, node.path.then(step))

    def note_keys(self, node: Node, step: Step, keys: Any) -> None:
        """The keys of a dictionary, the names of an object's attributes, or the elements of a set."""
        if step not in node.known:
            self._record(node, step, Constant(keys), keys, NO_SLOT, node.path.then(step))

    def unchanged(self, old: Any, now: Any) -> bool:
        """Whether `now` is what `old` was, on each run."""
        return now is old or (same_constant(old, now) and not self.numbers.is_traced(now))

    def note_attributes(self, node: Node) -> None:
        """Every attribute in the object's `__dict__`, and that there are no others."""
        entries = instance_dict(node.obj)
        if entries is not None and InstanceKeys() not in node.known:
            self.before.take_instance(node.obj)
            content = self.before.content(entries)
            assert isinstance(content, dict)
            self.note_keys(node, InstanceKeys(), tuple(content))
            for name in tuple(content):
                self.note(node, Attribute(name), content[name])

    def note_contents(self, node: Node) -> None:
        """Every element of a container, and that there are no others."""
        obj = node.obj
        content = self.before.content(obj)
        self._elements += len(content)
        if self._elements > _CONTAINER_LIMIT:
            self._meetings.on_problem(f"reads containers of more than {_CONTAINER_LIMIT} elements ({node.path})")
            return
        if isinstance(content, dict):
            self.note_keys(node, Keys(), tuple(content))
            for key, value in content.items():
                self.note(node, Item(key), value)
        elif isinstance(obj, set | frozenset):
            if not all(is_constant(item) or isinstance(item, type | enum.Enum) for item in content):
                self._meetings.on_problem(f"reads {node.path}, a set of objects")
            self.note_keys(node, Contents(), frozenset(content))
        else:
            self.note(node, Length(), len(content))
            for position, value in enumerate(content):
                self.note(node, Index(position), value)

    def note_function(self, node: Node) -> None:
        """The function ran: its defaults, closure and attributes were there to be read."""
        function = node.obj
        for name in ("__defaults__", "__kwdefaults__"):
            self.note(node, Slot(name), getattr(function, name))
        for index, name in enumerate(function.__code__.co_freevars):
            step = Closure(name, index)
            value = step.get(function)
            if not self._meetings.on_variable(node, step, value, function.__code__):
                self.note(node, step, value)
        if function.__dict__:
            self.note_attributes(node)

    def table_node(self, node: Node, name: str, table: Any) -> Node:
        """The node of a module's `_parameters`, `_buffers` or `_modules`, of which only single entries are noted."""
        known = self.nodes.get(id(table))
        if known is not None:
            self.note(node, Attribute(name), table)
            return known
        path = node.path.then(Attribute(name))
        child = self._new_node(table, path, node.origin)
        self._record(node, Attribute(name), OfType(type(table)), table, child.slot, path)
        return child

    def slots_of(self, paths: Sequence[Path]) -> dict[Path, int]:
        """The slots of tensors, by path. Raises ValueError."""
        slots = {node.path: node.slot for node, _ in self.metadata}
        for path in paths:
            if path not in slots:
                raise ValueError(f"{path} is not the path of a tensor that this trace met")
        return slots

    def _record(self, node: Node, step: Step, expectation: Expectation, value: Any, slot: int, path: Path) -> None:
        node.known.add(step)
        self.facts.append(Fact(node.slot, step, expectation, slot, path, self._reader()))
        self.found.append((node, value))

    def _reader(self) -> Source:
        if self.source is None:
            self.source = self._sources.current()
        return self.source

    def _new_node(self, value: Any, path: Path, origin: int | None) -> Node:
        node = Node(value, self.slot_count, path, self.slot_count if origin is None else origin)
        self.slot_count += 1
        self.nodes[id(value)] = node
        return node

    # ---------------------------------------------------------------- values

    def _expect(self, value: Any, path: Path, origin: int) -> tuple[Expectation, Node | None]:
        """What to expect of `value`, and its new node when there is more to note about it."""
        kind = type(value)
        if value is ABSENT:
            return Missing(), None
        if is_constant(value):
            return Constant(value), None
        if issubclass(kind, type):
            self._meetings.on_class(value)
            return Identical(value), None
        if issubclass(kind, types.ModuleType):
            self._meetings.on_module(value)
            return Identical(value), None
        if issubclass(kind, enum.Enum):
            return Identical(value), None
        known = self.nodes.get(id(value))
        if known is not None:
            return SameAs(known.slot, known.path), None
        if issubclass(kind, torch.Tensor):
            metadata = TensorOf.of(value, self._grad_mode)
            node = self._new_node(value, path, origin)
            self.metadata.append((node, metadata))
            return metadata, node
        if kind is types.FunctionType:
            if is_library_code(value.__code__, value.__globals__):
                return Identical(value), None
            return FunctionOf(value.__code__), self._new_node(value, path, origin)
        if kind in _PARTS or issubclass(kind, _CONTAINERS) or is_observable(kind):
            return OfType(kind), self._new_node(value, path, origin)
        return self._expect_foreign(value, path, origin)

    def _expect_foreign(self, value: Any, path: Path, origin: int) -> tuple[Expectation, Node | None]:
        """Objects of classes that are written in C, or that belong to machinery."""
        kind = type(value)
        if issubclass(kind, _ARRAYS):
            size = value.nbytes if isinstance(value, numpy.ndarray) else memoryview(value).nbytes
            if size > _ARRAY_LIMIT or (isinstance(value, numpy.ndarray) and value.dtype.hasobject):
                reason = f"reads the {kind.__qualname__} {path} of {size} bytes, whose content is too large to guard"
                self._meetings.on_problem(reason)
            else:
                return ArrayOf.of(value), None
        if hasattr(kind, "__next__"):
            self._meetings.on_problem(f"reads the iterator {path}, whose state cannot be guarded")
        elif kind.__module__.startswith("numpy.random"):
            self._meetings.on_problem(f"reads the numpy generator {path}, whose state cannot be guarded")
        elif is_cached_function(value):
            self._meetings.on_problem(f"calls {path}, whose cache cannot be guarded")
        elif issubclass(kind, _OBSERVED_WHOLE) or (
            not issubclass(kind, _STATELESS) and not is_plumbing(kind) and instance_dict(value)
        ):
            return OfType(kind), self._new_node(value, path, origin)
        self.held[id(value)] = value
        wraps = "__wrapped__" in (instance_dict(value) or ())  # a jitted function, called from this one
        return Identical(value), self._new_node(value, path, origin) if wraps else None

    def explore(self, node: Node) -> None:
        """Note what meeting an object gives away at once: parts of methods, contents of containers."""
        node.light = False
        obj, kind = node.obj, type(node.obj)
        if kind is types.FunctionType:
            self.before.take_instance(obj)
            self._meetings.on_function(node)
            return
        if kind in _PARTS:
            for step in _PARTS[kind]:
                self.note(node, step, step.get(obj))
            return
        if kind is contextvars.ContextVar:
            self.note(node, Asked("get", contextvars.ContextVar.get, (ABSENT,)), obj.get(ABSENT))
            return
        if issubclass(kind, threading.local):
            names = tuple(vars(obj))
            self.note_keys(node, Asked("__dict__", _local_names, ()), names)
            for name in names:
                self.note(node, Asked("__dict__.get", _local_entry, (name,)), _local_entry(obj, name))
        if issubclass(kind, torch.Tensor):
            if instance_dict(obj):
                self.note_attributes(node)
            return
        if is_observable(kind) or kind is types.SimpleNamespace:
            self.before.take_instance(obj)
        if issubclass(kind, _CONTAINERS):
            self.note_contents(node)
        if is_observable(kind) or kind is types.SimpleNamespace:
            self._meetings.on_instance(node)
        elif instance_dict(obj) and not is_plumbing(kind):
            self.note_attributes(node)
        elif "__wrapped__" in (instance_dict(obj) or ()):
            self.note(node, Attribute("__wrapped__"), obj.__wrapped__)


def may_change_unseen(held: object) -> bool:
    """Whether an object that is held without a look inside may have a state."""
    if isinstance(held, types.BuiltinFunctionType):
        return not isinstance(held.__self__, type | types.ModuleType | None)
    return not isinstance(held, _STATELESS) and "__wrapped__" not in (instance_dict(held) or ())


def _local_names(local: threading.local) -> tuple[str, ...]:
    """The attributes that a thread-local object has on this thread."""
    return tuple(vars(local))


def _local_entry(local: threading.local, name: str) -> Any:
    return vars(local).get(name, ABSENT)


def _label(function: Callable[..., Any]) -> str:
    if isinstance(function, types.FunctionType | types.MethodType):
        return function.__name__
    return "function" if isinstance(function, functools.partial) else "self"
