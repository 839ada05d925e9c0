"""Observer: runs around one real call of the user's function and records what the call read and wrote.

What a trace depends on is what its Python read: arguments, attributes, globals, closures, classes, torch's state.
Each read becomes a `Fact` on a path from a root; a changed fact makes the trace stale, and nothing else does.

How reads are seen:

- attributes: the classes of objects met carry wrappers while the trace runs (`trace.patching`);
- globals, closures, class and module attributes: a profile hook sees each code object once, and the names that it
  contains are noted (`trace.scopes`);
- containers: lists, dictionaries and sets are noted whole when they are met, since their own reads cannot be seen.

An object that was not reached from a root through observed reads was born during the trace, and is not guarded.
"""

from __future__ import annotations

import gc
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import torch

from dsjit.errors import CaptureError
from dsjit.ir.graph import UNKNOWN_SOURCE, Source
from dsjit.trace.effects import (
    Effect,
    EffectKind,
    Problem,
    class_effects,
    fact_effects,
    metadata_effects,
    stored_attribute,
)
from dsjit.trace.facts import same_constant
from dsjit.trace.forbidden import FORBIDDEN_NAMES, PASSING, RandomStates, blame, forbidden_builtin, forbidden_code
from dsjit.trace.guards import Guard
from dsjit.trace.library import is_library_code, is_stdlib_file
from dsjit.trace.notes import MODULE_TABLES, Node, Notes
from dsjit.trace.patching import PATCHES
from dsjit.trace.paths import ABSENT, Attribute, Item, Keys, Path, Slot, instance_dict, static_lookup
from dsjit.trace.profile_hook import ProfileHook
from dsjit.trace.scopes import Scopes
from dsjit.trace.state import TorchState, foreign_modes

__all__ = ["Effect", "EffectKind", "Observer", "Problem"]


class _Where(Enum):
    """Where the value of an attribute is stored, as far as its class tells."""

    INSTANCE = 0
    SLOT = 1
    WHOLE = 2
    CLASS = 3
    NOWHERE = 4


def _where(entry: Any, name: str) -> _Where:
    """entry: what the class has under the name, or ABSENT."""
    if name in ("__class__", "__weakref__"):
        return _Where.NOWHERE
    if name == "__dict__":
        return _Where.WHOLE
    kind = type(entry)
    if not hasattr(kind, "__set__") and not hasattr(kind, "__delete__"):
        return _Where.INSTANCE
    stored = kind is types.MemberDescriptorType or kind is types.GetSetDescriptorType
    return _Where.SLOT if stored else _Where.CLASS


class Observer:
    """Records what `function(*args, **kwargs)` reads and writes while the `with` block runs.

    function: a function, bound method, `functools.partial`, callable object or `nn.Module`.
    Only the thread that enters is observed. Whatever happens inside, everything patched is put back.
    """

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._function = function
        self._args = args
        self._kwargs = dict(kwargs)
        self._state = TorchState.current()
        self._scopes = Scopes(self._problem)
        self._notes = self._scopes.notes = Notes(self._scopes, self._state.grad_mode)
        self._lookups: dict[tuple[type, str], _Where] = {}
        self.seen: set[tuple[int, str]] = set()
        self._writes: dict[tuple[int, str], tuple[Node, Any, Source]] = {}
        self._hook = ProfileHook(self._on_code, self._on_builtin)
        self._problems: list[Problem] = []
        self._effects: tuple[Effect, ...] = ()
        self._busy = False

    # ---------------------------------------------------------------- the trace's begin and end

    def __enter__(self) -> Observer:
        """Raises CaptureError when this thread is being traced already, or under a mode or profiler of others."""
        mode = foreign_modes()
        if mode is not None:
            raise CaptureError(f"cannot trace: {mode}")
        PATCHES.enter(self)
        try:
            self._profiler = sys.getprofile()
            if self._profiler is not None and not callable(self._profiler) and not hasattr(self._profiler, "enable"):
                raise CaptureError("cannot trace: a profiler that cannot be suspended is active")
            self._state = TorchState.current()
            self._random = RandomStates()
            self._notes.meet_call(self._function, self._args, self._kwargs)
        except BaseException:
            PATCHES.leave(self._scopes.patches)
            raise
        # A collection calls back whoever asked for it (profilers, test tools): that is not the traced code's doing.
        self._collects = gc.isenabled()
        gc.disable()
        self._hook.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.stop()
        if self._collects:
            gc.enable()
        PATCHES.leave(self._scopes.patches)
        if callable(self._profiler):
            sys.setprofile(self._profiler)
        elif self._profiler is not None:
            self._profiler.enable()
        try:
            self._scopes.note_classes()
            self._find_effects()
        except Exception as error:
            self._unobservable(error)
        drawn = self._random.why_changed()
        if drawn is not None:
            self._problem(drawn)
        changed = self._state.why_not()
        if changed is not None:
            self._problem(f"changes torch's global state ({changed})")

    # ---------------------------------------------------------------- what the recorder asks

    def pauses(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """To be called before and after work that is not the user's code: none of it is observed."""
        return self._hook.pauses()

    def path_of(self, tensor: torch.Tensor) -> Path | None:
        """Where `tensor` was met first, or None when it was born during the trace (or never read)."""
        return self.path_of_object(tensor)

    def path_of_object(self, obj: object) -> Path | None:
        """The same for any object that has identity (constants, classes and modules have no path)."""
        node = self._notes.node_of(obj)
        return None if node is None else node.path

    def tensor_paths(self) -> tuple[Path, ...]:
        """Paths of all tensors met so far, in the order in which they were met."""
        return tuple(node.path for node, _ in self._notes.metadata)

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

        The guard of a call with effects fails as long as they last: it tells when the very same call comes again.
        """
        slots = self._slots_of(input_paths)
        return Guard(
            function=self._function,
            facts=tuple(self._notes.facts),
            roots=self._notes.roots,
            slot_count=self._notes.slot_count,
            inputs=tuple(slots[path] for path in input_paths),
            written=written,
            state=self._state,
            native=native,
            first=(self._args, self._kwargs),
        )

    def _slots_of(self, paths: Sequence[Path]) -> dict[Path, int]:
        slots = {node.path: node.slot for node, _ in self._notes.metadata}
        for path in paths:
            if path not in slots:
                raise ValueError(f"{path} is not the path of a tensor that this trace met")
        return slots

    # ---------------------------------------------------------------- events

    def _on_builtin(self, function: Any, frame: types.FrameType) -> bool:
        """A built-in function is called; True when its calls are of no interest."""
        if function.__name__ not in FORBIDDEN_NAMES:
            return True
        reason = forbidden_builtin(function)
        if reason is not None:
            self._forbid(reason, frame)
        return False

    def _on_code(self, frame: types.FrameType) -> bool:
        """A code object begins to run; True when its further runs are of no interest."""
        code, scope = frame.f_code, frame.f_globals
        if not is_library_code(code, scope):
            try:
                self._scopes.on_code(code, scope)
            except Exception as error:
                self._unobservable(error)
        elif is_stdlib_file(code.co_filename):
            module = scope.get("__name__", "")
            if module == "os" and code.co_qualname == "_Environ.__getitem__":
                self._on_environ(frame.f_locals["key"])
                return False  # each key is a read of its own
            reason = forbidden_code(module, code.co_qualname)
            if reason is not None:
                self._forbid(reason, frame.f_back)
                return False
        return True

    def _on_environ(self, key: str) -> None:
        data: dict[Any, Any] = os.environ.__dict__["_data"]
        encoded = os.environ.encodekey(key)
        self._notes.note(self._notes.root_node(data, "os.environ"), Item(encoded), data.get(encoded, ABSENT))

    def on_read(self, obj: object, name: str, value: object) -> None:
        """An attribute of an instance was found by the default lookup."""
        key = (id(obj), name)
        if key in self.seen or self._busy:
            return
        node = self._notes.nodes.get(id(obj))
        if node is not None:
            self.seen.add(key)
            self._undisturbed(self._note_read, node, name, value)

    def on_missing(self, obj: object, name: str) -> None:
        """The default lookup found nothing (a `__getattr__` may still answer)."""
        self.on_read(obj, name, ABSENT)

    def on_opaque_read(self, obj: object) -> None:
        """The class has a `__getattribute__` of its own: what it reads from the instance cannot be seen."""
        key = (id(obj), "")
        if key in self.seen or self._busy:
            return
        node = self._notes.nodes.get(id(obj))
        if node is not None:
            self.seen.add(key)
            self._undisturbed(self._notes.note_attributes, node)

    def on_module_lookup(self, module: torch.nn.Module, name: str) -> None:
        """`nn.Module.__getattr__` looks `name` up among parameters, buffers and submodules."""
        key = (id(module), "." + name)
        if key in self.seen or self._busy:
            return
        node = self._notes.nodes.get(id(module))
        if node is not None:
            self.seen.add(key)
            self._undisturbed(self._note_module_entry, node, name)

    def on_write(self, obj: object, name: str) -> None:
        """An attribute of an instance is about to be set or deleted."""
        node = self._notes.nodes.get(id(obj))
        if node is not None and not self._busy:
            self._undisturbed(self._note_write, node, name, sys._getframe(2))

    def _undisturbed(self, note: Callable[..., None], *arguments: Any) -> None:
        """Call `note` without seeing its own reads and calls."""
        self._busy = True
        self._hook.muted[0] = 1
        try:
            note(*arguments)
        except Exception as error:
            self._unobservable(error)
        finally:
            self._busy = False
            self._hook.muted[0] = 0

    # ---------------------------------------------------------------- notes of one event

    def _note_read(self, node: Node, name: str, value: object) -> None:
        cls = type(node.obj)
        where = self._lookups.get((cls, name))
        if where is None:
            where = self._lookups[cls, name] = _where(static_lookup(cls, name), name)
            if where is not _Where.NOWHERE:
                self._scopes.note_class(cls, name)
        if where is _Where.WHOLE:
            self._notes.note_attributes(node)
        elif where is _Where.SLOT:
            self._notes.note(node, Slot(name), value)
        elif where is _Where.INSTANCE:
            entries = instance_dict(node.obj)
            self._notes.note(node, Attribute(name), ABSENT if entries is None else entries.get(name, ABSENT))
            if name in MODULE_TABLES:
                table = self._notes.node_of(value)
                if table is not None and Keys() not in table.known:
                    self._notes.note_contents(table)  # only single entries were noted so far

    def _note_module_entry(self, node: Node, name: str) -> None:
        entries = instance_dict(node.obj) or {}
        for table in MODULE_TABLES:
            if table not in entries:
                self._notes.note(node, Attribute(table), ABSENT)
                continue
            owner = self._notes.table_node(node, table, entries[table])
            value = entries[table].get(name, ABSENT)
            self._notes.note(owner, Item(name), value)
            if value is not ABSENT:
                return

    def _note_write(self, node: Node, name: str, frame: types.FrameType) -> None:
        source = blame(frame) or UNKNOWN_SOURCE
        self._writes.setdefault((id(node.obj), name), (node, stored_attribute(node.obj, name), source))
        self.seen.add((id(node.obj), name))
        self.seen.add((id(node.obj), "." + name))

    # ---------------------------------------------------------------- problems and effects

    def _problem(self, reason: str, source: Source = UNKNOWN_SOURCE) -> None:
        problem = Problem(reason, source, passing=reason in PASSING)
        if problem not in self._problems:
            self._problems.append(problem)

    def _unobservable(self, error: Exception) -> None:
        """Whatever goes wrong while observing must not reach the user's function, nor leave a guard with holes."""
        self._problem(f"reads state that cannot be observed ({type(error).__name__}: {error})")

    def _forbid(self, reason: str, frame: types.FrameType | None) -> None:
        source = blame(frame)
        if source is not None:
            self._problem(reason, source)

    def _find_effects(self) -> None:
        effects: dict[tuple[Path, str, object], Effect] = {}
        for (_, name), (node, old, source) in self._writes.items():
            new = stored_attribute(node.obj, name)
            if new is not old and not same_constant(old, new):
                effect = Effect(node.path, "attribute", name, new, source)
                effects[effect.path, effect.kind, effect.name] = effect
            elif old is not ABSENT:
                self._note_stored(node, name)
        notes = self._notes
        facts = ((fact, node, value) for fact, (node, value) in zip(notes.facts, notes.found, strict=True))
        for effect in (
            *fact_effects(facts),
            *class_effects(self._scopes.classes),
            *metadata_effects(notes.metadata, self._state.grad_mode),
        ):
            effects.setdefault((effect.path, effect.kind, effect.name), effect)
        self._effects = tuple(effects.values())

    def _note_stored(self, node: Node, name: str) -> None:
        """A write left what was there: then the call depends on it having been there."""
        entries = instance_dict(node.obj) or {}
        if name in entries:
            self._notes.note(node, Attribute(name), entries[name])
        elif isinstance(node.obj, torch.nn.Module):
            self._note_module_entry(node, name)
        else:
            self._notes.note(node, Slot(name), Slot(name).get(node.obj))
