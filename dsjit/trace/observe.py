"""Observer: runs around one real call of the user's function and records what the call read and wrote.

What a trace depends on is what its Python read: arguments, attributes, globals, closures, classes, torch's state.
Each read becomes a `Fact` on a path from a root; a changed fact makes the trace stale, and nothing else does.

How reads are seen:

- attributes: the classes of objects met carry wrappers while the trace runs (`trace.patching`);
- globals and closures: a profile hook sees each code object once, and notes the globals that it names;
- containers: lists, dictionaries and sets are noted whole when they are met, since their own reads cannot be seen.

An object that was not reached from a root through observed reads was born during the trace, and is not guarded.
"""

from __future__ import annotations

import builtins
import enum
import functools
import os
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy
import torch

from dsjit.errors import CaptureError
from dsjit.ir.graph import UNKNOWN_SOURCE, Source
from dsjit.trace.facts import (
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
    OfType,
    SameAs,
    TensorOf,
    is_constant,
    same_constant,
)
from dsjit.trace.forbidden import FORBIDDEN_NAMES, RandomStates, blame, forbidden_builtin, forbidden_code
from dsjit.trace.guards import Guard
from dsjit.trace.library import (
    code_names,
    global_names,
    is_library_code,
    is_library_module,
    is_observable,
    is_plumbing,
    is_stdlib_file,
)
from dsjit.trace.patching import PATCHED_NAMES, PATCHES, Patch, patches_for
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
    Path,
    Referent,
    Root,
    Slot,
    Step,
    instance_dict,
    static_lookup,
)
from dsjit.trace.state import TorchState, foreign_modes

__all__ = ["Effect", "EffectKind", "Observer", "Problem"]

EffectKind: TypeAlias = Literal["attribute", "item", "global", "closure", "contents", "class", "metadata"]

_CONTAINER_LIMIT: Final = 50_000
"""Elements of containers that one trace may note; above it, the call is not captured."""

_NUMPY_LIMIT: Final = 1 << 16
"""Bytes of a numpy array whose content is guarded."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the call cannot be captured, and at which line of the user's."""

    reason: str
    source: Source

    def __str__(self) -> str:
        return self.reason if self.source is UNKNOWN_SOURCE else f"{self.reason} ({self.source})"


@dataclass(frozen=True, slots=True)
class Effect:
    """The call left `value` (or `ABSENT`) as `name` of the object at `path`, where something else was before."""

    path: Path
    kind: EffectKind
    name: object
    value: object
    source: Source = UNKNOWN_SOURCE

    def __str__(self) -> str:
        if self.kind == "contents":
            return f"changes the contents of {self.path}"
        if self.kind == "metadata":
            return f"changes the {self.name} of {self.path}"
        return f"writes {self.kind} {self.name!r} of {self.path}"


@dataclass(slots=True, eq=False)
class _Node:
    """An object that existed before the trace, the slot and path by which it was met first, and the steps noted."""

    obj: Any
    slot: int
    path: Path
    known: set[Step] = field(default_factory=set)


class Observer:
    """Records what `function(*args, **kwargs)` reads and writes while the `with` block runs.

    function: a function, bound method, `functools.partial`, callable object or `nn.Module`.
    Only the thread that enters is observed. Whatever happens inside, everything patched is put back.
    """

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._function = function
        self._args = args
        self._kwargs = dict(kwargs)
        self._nodes: dict[int, _Node] = {}
        self._facts: list[Fact] = []
        self._found: list[tuple[_Node, Any]] = []
        self._slots = 0
        self._roots: dict[int, Any] = {}
        self._patches: set[Patch] = set()
        self._seen: set[tuple[int, str]] = set()
        self._writes: dict[tuple[int, str], tuple[_Node, Any, Source]] = {}
        self._codes: dict[int, types.CodeType] = {}
        self._names: set[str] = set()
        self._modules: dict[int, types.ModuleType] = {}
        self._classes: dict[type, dict[str, Any]] = {}
        self._class_functions: dict[int, list[tuple[type, str]]] = {}
        self._pending: dict[int, list[_Node]] = {}
        self._metadata: list[tuple[_Node, TensorOf]] = []
        self._elements = 0
        self._problems: list[Problem] = []
        self._effects: tuple[Effect, ...] = ()
        self._busy = False
        self._pinned: list[Any] = []

    # ---------------------------------------------------------------- the trace's begin and end

    def __enter__(self) -> Observer:
        """Raises CaptureError when this thread is being traced already, or under a mode or profiler of others."""
        mode = foreign_modes()
        if mode is not None:
            raise CaptureError(f"cannot trace: {mode}")
        self._profiler = sys.getprofile()
        if self._profiler is not None and not callable(self._profiler) and not hasattr(self._profiler, "enable"):
            raise CaptureError("cannot trace: a profiler that cannot be suspended is active")
        PATCHES.enter(self)
        try:
            self._state = TorchState.current()
            self._random = RandomStates()
            self._meet_roots()
        except BaseException:
            PATCHES.leave(self._patches)
            raise
        sys.setprofile(self._on_profile)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.setprofile(None)
        PATCHES.leave(self._patches)
        if callable(self._profiler):
            sys.setprofile(self._profiler)
        elif self._profiler is not None:
            self._profiler.enable()
        self._note_classes()
        self._effects = tuple(self._find_effects())
        drawn = self._random.why_changed()
        if drawn is not None:
            self._problem(drawn)
        changed = self._state.why_not()
        if changed is not None:
            self._problem(f"changes torch's global state ({changed})")

    def _meet_roots(self) -> None:
        for slot, label, obj in (
            (ARGS_SLOT, "args", self._args),
            (KWARGS_SLOT, "kwargs", self._kwargs),
            (FUNCTION_SLOT, _function_label(self._function), self._function),
        ):
            node = _Node(obj, slot, Path(None, Root(label)))
            self._slots = slot + 1
            self._nodes[id(obj)] = node
        for slot in (ARGS_SLOT, KWARGS_SLOT, FUNCTION_SLOT):
            obj = (self._args, self._kwargs, self._function)[slot]
            self._explore(self._nodes[id(obj)])

    # ---------------------------------------------------------------- what the recorder asks

    def path_of(self, tensor: torch.Tensor) -> Path | None:
        """Where `tensor` was met first, or None when it was born during the trace (or never read)."""
        return self.path_of_object(tensor)

    def path_of_object(self, obj: object) -> Path | None:
        """The same for any object that has identity (constants have no path)."""
        node = self._nodes.get(id(obj))
        return None if node is None or node.obj is not obj else node.path

    @property
    def effects(self) -> tuple[Effect, ...]:
        """What the call wrote to Python state that existed before; known once the `with` block ended."""
        return self._effects

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that keeps the call from being captured; complete once the `with` block ended."""
        return (*self._problems, *(Problem(str(effect), effect.source) for effect in self._effects))

    def build_guard(self, input_paths: Sequence[Path], written: frozenset[int], *, native: bool = True) -> Guard:
        """The check that later calls must pass. Call it after the `with` block, in the state of the trace.

        input_paths: from `path_of`, of the tensors that the Graph takes, without duplicates.
        written: which of them (by position) the Graph writes in place.
        native: whether known objects may be checked by native code; the result is the same either way.
        """
        slots = {id(node.path): node.slot for node in self._nodes.values()}
        by_value = {str(node.path): node for node in self._nodes.values()}
        inputs: list[int] = []
        for path in input_paths:
            slot = slots.get(id(path))
            if slot is None:
                node = by_value.get(str(path))
                if node is None or node.path != path:
                    raise ValueError(f"{path} was not observed by this trace")
                slot = node.slot
            inputs.append(slot)
        return Guard(
            function=self._function,
            facts=tuple(self._facts),
            roots=self._roots,
            slot_count=self._slots,
            inputs=tuple(inputs),
            written=written,
            state=self._state,
            native=native,
            first=(self._args, self._kwargs),
        )

    # ---------------------------------------------------------------- noting facts

    def _note(self, node: _Node, step: Step, value: Any) -> None:
        """`step` from `node` finds `value`: record it, once, and look into the value."""
        if step in node.known:
            return
        node.known.add(step)
        path = node.path.then(step)
        expectation, child = self._expect(value, path)
        slot = NO_SLOT if child is None else child.slot
        self._facts.append(Fact(node.slot, step, expectation, slot, path))
        self._found.append((node, value))
        if child is not None:
            self._explore(child)

    def _new_node(self, value: Any, path: Path) -> _Node:
        node = _Node(value, self._slots, path)
        self._slots += 1
        self._nodes[id(value)] = node
        return node

    def _root_node(self, obj: Any, label: str) -> _Node:
        """The node of an object that the guard holds itself: a class, a module, a dictionary of globals."""
        node = self._nodes.get(id(obj))
        if node is None:
            node = self._new_node(obj, Path(None, Root(label, id(obj))))
        if node.slot not in self._roots and node.path.parent is None and node.slot > FUNCTION_SLOT:
            self._roots[node.slot] = obj
        return node

    def _expect(self, value: Any, path: Path) -> tuple[Expectation, _Node | None]:
        """What to expect of `value`, and its new node when there is more to note about it."""
        if value is ABSENT:
            return Missing(), None
        kind = type(value)
        known = self._nodes.get(id(value))
        if known is not None and not isinstance(value, type) and kind is not types.ModuleType:
            return SameAs(known.slot, known.path), None
        if is_constant(value):
            self._pinned.append(value)
            return Constant(value), None
        if issubclass(kind, type):
            self._meet_class(value)
            return Identical(value), None
        if issubclass(kind, types.ModuleType):
            if kind is types.ModuleType:
                self._meet_module(value)
            return Identical(value), None
        if issubclass(kind, enum.Enum):
            return Identical(value), None
        if issubclass(kind, torch.Tensor):
            metadata = TensorOf.of(value, self._state.grad_mode)
            node = self._new_node(value, path)
            self._metadata.append((node, metadata))
            return metadata, node
        if kind is types.FunctionType:
            if is_library_code(value.__code__, value.__globals__):
                return Identical(value), None
            return FunctionOf(value.__code__), self._new_node(value, path)
        if kind in _PARTS or issubclass(kind, _CONTAINERS) or is_observable(kind):
            return OfType(kind), self._new_node(value, path)
        if issubclass(kind, numpy.ndarray):
            return self._expect_array(value)
        if hasattr(kind, "__next__"):
            self._problem(f"reads the iterator at {path}, whose state cannot be guarded")
        if kind.__module__.startswith("numpy.random"):
            self._problem(f"reads the numpy generator at {path}, whose state cannot be guarded")
        if not issubclass(kind, _OPAQUE) and not is_plumbing(kind) and instance_dict(value):
            return OfType(kind), self._new_node(value, path)
        return Identical(value), None

    def _expect_array(self, value: Any) -> tuple[Expectation, None]:
        if value.dtype.hasobject or value.nbytes > _NUMPY_LIMIT:
            self._problem(f"reads a numpy array of {value.nbytes} bytes, whose content is too large to guard")
        return ArrayOf(value.dtype.str, value.shape, value.tobytes()), None

    def _explore(self, node: _Node) -> None:
        """Note what reading an object gives away at once: parts of functions and methods, contents of containers."""
        obj, kind = node.obj, type(node.obj)
        if kind is types.FunctionType:
            if id(obj.__code__) in self._codes:
                self._expand_function(node)
            else:
                self._pending.setdefault(id(obj.__code__), []).append(node)
        elif kind in _PARTS:
            for step in _PARTS[kind]:
                self._note(node, step, step.get(obj))
        elif issubclass(kind, torch.Tensor):
            if instance_dict(obj):
                self._note_whole(node)
        elif issubclass(kind, _CONTAINERS):
            self._note_contents(node)
        if is_observable(kind):
            self._observe_instance(node)
        elif kind not in _PARTS and kind is not types.FunctionType and not issubclass(kind, torch.Tensor):
            if node.slot > FUNCTION_SLOT and not isinstance(obj, type | types.ModuleType) and instance_dict(obj):
                self._note_whole(node)

    def _observe_instance(self, node: _Node) -> None:
        kind = type(node.obj)
        self._meet_class(kind)
        if issubclass(kind, tuple | torch.Tensor):
            return  # what a named tuple's attributes read are its elements; tensors are noted whole
        for patch in patches_for(kind):
            if patch not in self._patches:
                self._patches.add(patch)
                try:
                    PATCHES.acquire(patch)
                except TypeError:
                    self._patches.discard(patch)
                    self._note_whole(node)

    def _note_contents(self, node: _Node) -> None:
        obj = node.obj
        self._elements += len(obj)
        if self._elements > _CONTAINER_LIMIT:
            self._problem(f"reads containers of more than {_CONTAINER_LIMIT} elements ({node.path})")
            return
        step: Step
        if isinstance(obj, dict):
            keys = Keys().get(obj)
            self._note_keys(node, Keys(), keys)
            for key in keys:
                step = Item(key)
                self._note(node, step, step.get(obj))
        elif isinstance(obj, set | frozenset):
            elements = frozenset(obj)
            if not all(is_constant(item) or isinstance(item, type | enum.Enum) for item in elements):
                self._problem(f"reads {node.path}, a set of objects")
            self._note_keys(node, Contents(), elements)
        else:
            length = Length()
            self._note(node, length, length.get(obj))
            for position in range(length.get(obj)):
                step = Index(position)
                self._note(node, step, step.get(obj))

    def _note_keys(self, node: _Node, step: Step, keys: Any) -> None:
        if step not in node.known:
            node.known.add(step)
            self._facts.append(Fact(node.slot, step, Constant(keys), NO_SLOT, node.path.then(step)))
            self._found.append((node, keys))

    def _note_whole(self, node: _Node) -> None:
        """Note every attribute in the object's `__dict__`, and that there are no others."""
        entries = instance_dict(node.obj)
        if entries is None or InstanceKeys() in node.known:
            return
        self._note_keys(node, InstanceKeys(), tuple(entries))
        for name in tuple(entries):
            self._note(node, Attribute(name), entries[name])

    def _expand_function(self, node: _Node) -> None:
        """The function ran: its defaults, closure and attributes were there to be read."""
        function = node.obj
        for name in ("__defaults__", "__kwdefaults__"):
            self._note(node, Slot(name), getattr(function, name))
        for index, name in enumerate(function.__code__.co_freevars):
            step = Closure(name, index)
            self._note(node, step, step.get(function))
        if function.__dict__:
            self._note_whole(node)

    # ---------------------------------------------------------------- classes, modules, globals

    def _meet_class(self, cls: type) -> None:
        if cls in self._classes:
            return
        for base in cls.__mro__:
            if base in self._classes or not base.__flags__ & _HEAP_TYPE:
                continue
            entries = {name: value for name, value in base.__dict__.items() if name not in PATCHED_NAMES}
            self._classes[base] = entries
            for name, value in entries.items():
                function = _function_inside(value)
                if function is not None and not is_library_code(function.__code__, function.__globals__):
                    self._class_functions.setdefault(id(function.__code__), []).append((base, name))
                    if id(function.__code__) in self._codes:
                        self._note_class(base, name)
        self._classes.setdefault(cls, {})

    def _note_class(self, cls: type, name: str) -> None:
        step = Lookup(name)
        value = step.get(cls)
        node = self._root_node(cls, cls.__qualname__)
        if is_observable(cls) or isinstance(value, types.FunctionType) or value is ABSENT:
            self._note(node, step, value)
        elif step not in node.known:
            node.known.add(step)
            expectation = Constant(value) if is_constant(value) else Identical(value)
            self._facts.append(Fact(node.slot, step, expectation, NO_SLOT, node.path.then(step)))
            self._found.append((node, value))

    def _note_classes(self) -> None:
        """At the end: the class attributes whose names the executed code mentions."""
        for cls, entries in list(self._classes.items()):
            for name in sorted(self._names & entries.keys()):
                if name in cls.__dict__:
                    self._note_class(cls, name)
            for name in sorted(PATCHED_NAMES):
                if type(cls.__dict__.get(name)) is types.FunctionType:
                    self._note_class(cls, name)

    def _meet_module(self, module: types.ModuleType) -> None:
        if id(module) not in self._modules:
            self._modules[id(module)] = module
            self._note_module(module, self._names)

    def _note_module(self, module: types.ModuleType, names: set[str] | frozenset[str]) -> None:
        entries = module.__dict__
        found = [name for name in names if name in entries]
        if not found:
            return
        node = self._root_node(module, module.__name__)
        library = is_library_module(module)
        for name in sorted(found):
            value = entries[name]
            step = Attribute(name)
            if not library or isinstance(value, types.ModuleType | type):
                self._note(node, step, value)
            elif step not in node.known:
                node.known.add(step)
                expectation = Constant(value) if is_constant(value) else Identical(value)
                self._facts.append(Fact(node.slot, step, expectation, NO_SLOT, node.path.then(step)))
                self._found.append((node, value))

    def _on_code(self, frame: types.FrameType, code: types.CodeType) -> None:
        """A code object runs for the first time."""
        filename = code.co_filename
        if is_stdlib_file(filename):
            module = frame.f_globals.get("__name__", "")
            if module == "os" and code.co_qualname == "_Environ.__getitem__":
                self._on_environ(frame.f_locals["key"])
                del self._codes[id(code)]  # each key is a read of its own
                return
            reason = forbidden_code(module, code.co_qualname)
            if reason is not None:
                self._forbid(reason, frame.f_back)
                del self._codes[id(code)]
            return
        scope = frame.f_globals
        if is_library_code(code, scope):
            return
        node = self._root_node(scope, f"globals({scope.get('__name__', '?')})")
        for name in global_names(code):
            if name in scope:
                self._note(node, Item(name), scope[name])
            else:
                self._note(node, Item(name), ABSENT)
                outer = self._root_node(builtins.__dict__, "globals(builtins)")
                self._note(outer, Item(name), builtins.__dict__.get(name, ABSENT))
        new = code_names(code) - self._names
        if new:
            self._names |= new
            for module_ in list(self._modules.values()):
                self._note_module(module_, new)
            for name in new:
                if isinstance(sys.modules.get(name), types.ModuleType) and name not in scope:
                    self._meet_module(sys.modules[name])
        for cls, name in self._class_functions.get(id(code), ()):
            self._note_class(cls, name)
        for function in self._pending.pop(id(code), ()):
            self._expand_function(function)

    def _on_environ(self, key: str) -> None:
        data: dict[Any, Any] = os.environ._data  # type: ignore[attr-defined]
        encoded = os.environ.encodekey(key)  # type: ignore[attr-defined]
        self._note(self._root_node(data, "os.environ"), Item(encoded), data.get(encoded, ABSENT))

    # ---------------------------------------------------------------- events

    def _on_profile(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            if id(code) not in self._codes and not self._busy:
                self._codes[id(code)] = code
                self._on_code(frame, code)
        elif event == "c_call" and argument.__name__ in FORBIDDEN_NAMES:
            reason = forbidden_builtin(argument)
            if reason is not None:
                self._forbid(reason, frame)

    def on_read(self, obj: object, name: str, value: object) -> None:
        """An attribute of an instance was found by the default lookup."""
        key = (id(obj), name)
        if key in self._seen:
            return
        node = self._nodes.get(id(obj))
        if node is None:
            return
        self._seen.add(key)
        if name == "__class__" or name == "__weakref__" or self._busy:
            return
        self._busy = True
        try:
            self._note_read(node, name, value)
        finally:
            self._busy = False

    def _note_read(self, node: _Node, name: str, value: object) -> None:
        obj = node.obj
        if name == "__dict__":
            self._note_whole(node)
            return
        cls = type(obj)
        entry = static_lookup(cls, name)
        if entry is not ABSENT:
            self._note_class(cls, name)
            kind = type(entry)
            if hasattr(kind, "__set__") or hasattr(kind, "__delete__"):
                if kind is types.MemberDescriptorType or kind is types.GetSetDescriptorType:
                    self._note(node, Slot(name), value)
                return
        else:
            self._note(self._root_node(cls, cls.__qualname__), Lookup(name), ABSENT)
        entries = instance_dict(obj)
        self._note(node, Attribute(name), ABSENT if entries is None else entries.get(name, ABSENT))
        table = self._nodes.get(id(value))
        if name in _MODULE_TABLES and table is not None and Keys() not in table.known:
            self._note_contents(table)  # only single entries were noted so far

    def on_missing(self, obj: object, name: str) -> None:
        """The default lookup found nothing (a `__getattr__` may still answer)."""
        self.on_read(obj, name, ABSENT)

    def on_opaque_read(self, obj: object) -> None:
        """The class has a `__getattribute__` of its own: what it reads from the instance cannot be seen."""
        key = (id(obj), "")
        if key not in self._seen:
            node = self._nodes.get(id(obj))
            if node is not None and not self._busy:
                self._seen.add(key)
                self._busy = True
                try:
                    self._note_whole(node)
                finally:
                    self._busy = False

    def on_module_lookup(self, module: torch.nn.Module, name: str) -> None:
        """`nn.Module.__getattr__` looks `name` up among parameters, buffers and submodules."""
        key = (id(module), "." + name)
        if key in self._seen:
            return
        node = self._nodes.get(id(module))
        if node is None or self._busy:
            return
        self._seen.add(key)
        self._busy = True
        try:
            self._note_module_entry(node, name)
        finally:
            self._busy = False

    def _note_module_entry(self, node: _Node, name: str) -> None:
        entries = instance_dict(node.obj) or {}
        for table in _MODULE_TABLES:
            if table not in entries:
                self._note(node, Attribute(table), ABSENT)
                continue
            owner = self._table_node(node, table, entries[table])
            value = entries[table].get(name, ABSENT)
            self._note(owner, Item(name), value)
            if value is not ABSENT:
                return

    def _table_node(self, node: _Node, name: str, table: Any) -> _Node:
        """The node of `_parameters`, `_buffers` or `_modules`, of which only single entries are noted."""
        known = self._nodes.get(id(table))
        if known is not None:
            return known
        step = Attribute(name)
        node.known.add(step)
        child = self._new_node(table, node.path.then(step))
        self._facts.append(Fact(node.slot, step, OfType(type(table)), child.slot, child.path))
        self._found.append((node, table))
        return child

    def on_write(self, obj: object, name: str) -> None:
        """An attribute of an instance is about to be set or deleted."""
        node = self._nodes.get(id(obj))
        if node is None:
            return
        source = blame(sys._getframe(2)) or UNKNOWN_SOURCE
        self._writes.setdefault((id(obj), name), (node, _stored(obj, name), source))
        self._seen.add((id(obj), name))
        self._seen.add((id(obj), "." + name))

    # ---------------------------------------------------------------- problems and effects

    def _problem(self, reason: str, source: Source = UNKNOWN_SOURCE) -> None:
        problem = Problem(reason, source)
        if problem not in self._problems:
            self._problems.append(problem)

    def _forbid(self, reason: str, frame: types.FrameType | None) -> None:
        source = blame(frame)
        if source is not None:
            self._problem(reason, source)

    def _find_effects(self) -> list[Effect]:
        effects: dict[tuple[int, str, object], Effect] = {}

        def add(node: _Node, kind: EffectKind, name: object, value: object, source: Source = UNKNOWN_SOURCE) -> None:
            effects.setdefault((node.slot, kind, name), Effect(node.path, kind, name, value, source))

        for (_, name), (node, old, source) in self._writes.items():
            new = _stored(node.obj, name)
            if new is not old and not same_constant(old, new):
                add(node, "attribute", name, new, source)
            elif Attribute(name) not in node.known and old is not ABSENT:
                self._note_stored(node, name)
        for fact, (node, value) in zip(tuple(self._facts), tuple(self._found), strict=True):
            now = fact.step.get(node.obj)
            if now is value or Constant(value).matches(now):
                continue
            if isinstance(fact.step, Attribute | Slot):
                add(node, "attribute", fact.step.name, now)
            elif isinstance(fact.step, Item):
                is_global = node.path.parent is None and str(node.path).startswith("globals(")
                add(node, "global" if is_global else "item", fact.step.key, now)
            elif isinstance(fact.step, Closure):
                add(node, "closure", fact.step.name, now)
            elif isinstance(fact.step, Lookup):
                add(node, "class", fact.step.name, now)
            else:
                add(node, "contents", None, node.obj)
        for cls, entries in self._classes.items():
            for name in entries.keys() | cls.__dict__.keys():
                now = cls.__dict__.get(name, ABSENT)
                if name not in PATCHED_NAMES and now is not entries.get(name, ABSENT) and entries:
                    add(self._root_node(cls, cls.__qualname__), "class", name, now)
        for node, metadata in self._metadata:
            if not metadata.matches(node.obj):
                add(node, "metadata", "metadata", TensorOf.of(node.obj, self._state.grad_mode))
        return list(effects.values())

    def _note_stored(self, node: _Node, name: str) -> None:
        """A write left what was there: then the call depends on it having been there."""
        entries = instance_dict(node.obj) or {}
        if name in entries:
            self._note(node, Attribute(name), entries[name])
            return
        if isinstance(node.obj, torch.nn.Module):
            self._note_module_entry(node, name)
        else:
            self._note(node, Slot(name), Slot(name).get(node.obj))
_HEAP_TYPE: Final = 1 << 9

_MODULE_TABLES: Final = ("_parameters", "_buffers", "_modules")

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

_OPAQUE: Final = (types.BuiltinFunctionType, types.MethodWrapperType, type(len), type(str.join), type(str.__len__))


def _function_inside(value: object) -> types.FunctionType | None:
    """The function that a class entry wraps, if any."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    return value if isinstance(value, types.FunctionType) else None


def _function_label(function: Callable[..., Any]) -> str:
    if isinstance(function, types.FunctionType | types.MethodType):
        return function.__name__
    return "function" if isinstance(function, functools.partial) else "self"


def _stored(obj: object, name: str) -> Any:
    """What is stored under an attribute's name: in the `__dict__`, in a module's tables, or in a slot."""
    entries = instance_dict(obj)
    if entries is not None:
        if name in entries:
            return entries[name]
        if issubclass(type(obj), torch.nn.Module):
            for table in _MODULE_TABLES:
                if name in entries.get(table, ()):
                    return entries[table][name]
    entry = static_lookup(type(obj), name)
    if type(entry) is types.MemberDescriptorType or name == "__class__":
        return Slot(name).get(obj)
    return ABSENT
