"""Scopes: the classes, modules, functions and globals that the executed code could read by name.

Reads of globals, of module attributes and of class attributes cannot be intercepted. What is known is which code ran,
and which names it contains; so the entries of those names are noted when the code first runs.
"""

from __future__ import annotations

import builtins
import logging
import math
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import torch

from dsjit.ir.graph import UNKNOWN_SOURCE, Source
from dsjit.trace.effects.accumulators import CANDIDATES, Accumulators
from dsjit.trace.effects.stand_in import behind
from dsjit.trace.reads.cached_functions import CachedFunctions, CellPlace, GlobalPlace, is_cached_function
from dsjit.trace.reads.facts import is_constant
from dsjit.trace.reads.library import (
    code_names,
    global_names,
    imported_names,
    is_library_code,
    is_library_module,
    is_observable,
    name_lines,
)
from dsjit.trace.reads.notes import Node, Notes
from dsjit.trace.reads.patching import PATCHED_NAMES, PATCHES, Patch, patches_for
from dsjit.trace.reads.paths import ABSENT, Asked, Attribute, Closure, Item, Lookup, Path
from dsjit.trace.reads.uses import attribute_loads, name_loads, stores_name

__all__ = ["Scopes"]

_HEAP_TYPE: Final = 1 << 9
_COMPUTED_NAMES: Final = Source("<dsjit: names that are computed>", 0, "")
_MUTABLE: Final = (list, dict, set, deque)


class Scopes:
    """What was met by name. Implements `trace.reads.notes.Meetings` for the `notes` that it is given afterwards,
    with its `accumulators`. open_paths: see `trace.numbers.open_places`.

    on_math: called when the module `math` is met.
    classes: their entries when they were met. patches: taken for the instances that were met.
    """

    notes: Notes
    accumulators: Accumulators
    open_paths: frozenset[Path] = frozenset()

    def __init__(self, on_problem: Callable[[str], None]) -> None:
        self.on_problem = on_problem
        self.on_math: Callable[[], None] = lambda: None
        self.classes: dict[type, dict[str, Any]] = {}
        self.patches: set[Patch] = set()
        self._patched: set[type] = set()
        self._names: set[str] = set()
        self._modules: dict[int, types.ModuleType] = {}
        self._ran: set[int] = set()
        self._executed: list[types.CodeType] = []
        self._computes_names = False
        self._histories: dict[str, list[tuple[Node, Lookup, Any]]] = {}
        self._owners: dict[str, list[type]] = {}
        self._class_functions: dict[int, list[tuple[type, str]]] = {}
        self._waiting: dict[int, list[Node]] = {}
        self._cached = CachedFunctions(self)

    def leave(self) -> None:
        """Put back everything that was put in the place of the user's."""
        PATCHES.leave(self.patches)
        self._cached.leave()

    # ---------------------------------------------------------------- meetings

    def on_class(self, cls: type) -> None:
        for base in cls.__mro__:
            if base in self.classes or not base.__flags__ & _HEAP_TYPE:
                continue
            entries = {name: value for name, value in base.__dict__.items() if name not in PATCHED_NAMES}
            if base is logging.Logger:
                entries["handle"] = Lookup("handle").get(base)  # a stand-in while a trace runs
            self.classes[base] = entries
            for name, value in entries.items():
                self._owners.setdefault(name, []).append(base)
                if isinstance(value, _MUTABLE):
                    self.notes.before.take_container(value)
                function = _function_inside(value)
                if function is not None and not is_library_code(function.__code__, function.__globals__):
                    self._class_functions.setdefault(id(function.__code__), []).append((base, name))
                    if id(function.__code__) in self._ran:
                        self.note_class(base, name)
            for name in sorted(self._names & entries.keys()):
                self.note_class(base, name)

    def on_module(self, module: types.ModuleType) -> None:
        if module is math:
            self.on_math()
        if id(module) not in self._modules:
            self._modules[id(module)] = module
            self._note_module(module, self._names)

    def on_function(self, node: Node) -> None:
        code = node.obj.__code__
        if id(code) in self._ran:
            self.notes.note_function(node)
        else:
            self._waiting.setdefault(id(code), []).append(node)

    def on_instance(self, node: Node) -> None:
        kind = type(node.obj)
        if kind in self._patched:
            return
        self._patched.add(kind)
        self.on_class(kind)
        if issubclass(kind, tuple | torch.Tensor):
            return  # the attributes of a named tuple read its elements; tensors are noted whole
        for patch in patches_for(kind):
            if patch not in self.patches:
                try:
                    PATCHES.acquire(patch)
                except TypeError:  # the class refuses to be changed: its instances are noted whole
                    self._patched.discard(kind)
                    self.notes.note_attributes(node)
                    return
                self.patches.add(patch)

    def on_answer(self, function: Any, step: Asked, answer: Any) -> None:
        """A function with a cache was called in the traced code."""
        args, kwargs, *_ = step.arguments
        values = [*args, *[value for _, value in kwargs]]
        node = self.notes.cached_functions.get(id(function))
        known = is_constant(answer) or type(answer) in (torch.Tensor, torch.nn.Parameter)
        if node is None or not known or not all(map(is_constant, values)):
            name = getattr(function, "__name__", "a function")
            self.on_problem(f"calls {name}, whose cache holds more than constants and tensors")
        else:
            self.notes.note(node, step, answer)

    def is_made(self, argument: Any) -> bool:
        """See `trace.reads.cached_functions.AnswerListener`."""
        return isinstance(argument, torch.Tensor) and self.notes.node_of(argument) is None

    def on_variable(self, node: Node, step: Item | Closure, value: Any, code: types.CodeType) -> bool:
        is_cell = isinstance(step, Closure)
        function = behind(value)
        if isinstance(step, Closure) and is_cached_function(function):
            self._cached.watch(CellPlace(node.obj.__closure__[step.index]))
            self.notes.note_cached_function(node, step, function)
            return True
        name = step.name if isinstance(step, Closure) else step.key
        if type(value) not in CANDIDATES and not stores_name(code, name):
            return False
        if node.path.then(step) in self.open_paths:
            return False
        loads = name_loads(code, name, cell=is_cell)
        if loads is None:
            return False
        if loads:
            return type(value) in CANDIDATES and self.accumulators.read_name(node, step, value, loads)
        if step in node.known or not stores_name(code, name):
            return False
        self.accumulators.store_name(node, step, value)
        return True

    # ---------------------------------------------------------------- code

    def on_code(self, code: types.CodeType, scope: dict[str, Any]) -> None:
        """User code runs for the first time, in the globals `scope`."""
        self._ran.add(id(code))
        notes = self.notes
        lines = name_lines(code)
        beginning = notes.source = Source(code.co_filename, code.co_firstlineno, code.co_name)
        node = notes.root_node(scope, f"globals({scope.get('__name__', '?')})")
        for name in global_names(code):
            value = behind(scope.get(name, ABSENT))
            notes.source = replace(beginning, line=lines.get(name, code.co_firstlineno))
            if is_cached_function(value):
                self._cached.watch(GlobalPlace(scope, name))
                notes.note_cached_function(node, Item(name), value)
            elif not self.on_variable(node, Item(name), value, code):
                notes.note(node, Item(name), value)
            if name not in scope:
                outer = notes.root_node(builtins.__dict__, "globals(builtins)")
                notes.note(outer, Item(name), behind(builtins.__dict__.get(name, ABSENT)))
        notes.source = beginning
        self._executed.append(code)
        for name in imported_names(code):
            loaded = notes.root_node(sys.modules, "sys.modules")
            notes.note(loaded, Item(name), sys.modules.get(name, ABSENT))
        self._computes_names = self._computes_names or "getattr" in global_names(code)
        for name in code_names(code) & self._histories.keys():
            for owner, step, value in self._histories[name]:
                if not self._put_into(owner, step, value, [code]):
                    notes.note(owner, step, value)
        new = code_names(code) - self._names
        if new:
            self._names |= new
            for module in list(self._modules.values()):
                self._note_module(module, new)
            for name in sorted(new & self._owners.keys()):
                for cls in tuple(self._owners[name]):
                    self.note_class(cls, name)
            for name in sorted(new):
                imported = sys.modules.get(name)
                if isinstance(imported, types.ModuleType) and name not in scope:
                    self.on_module(imported)
        for cls, name in self._class_functions.get(id(code), ()):
            self.note_class(cls, name)
        for function in self._waiting.pop(id(code), ()):
            notes.note_function(function)

    def note_class(self, cls: type, name: str, *, whole: bool = False) -> None:
        """What attribute lookup finds in a class under `name`. whole: with its contents, whatever is done with it."""
        step = Lookup(name)
        value = step.get(cls)
        for base in cls.__mro__:
            entries = self.classes.get(base, base.__dict__)
            if name in entries:
                if entries[name] is not base.__dict__.get(name, ABSENT):
                    value = entries[name]  # as it was before the call
                break
        node = self.notes.root_node(cls, cls.__qualname__)
        if not whole and type(value) in CANDIDATES and self._put_into(node, step, value, self._executed):
            self._histories.setdefault(name, []).append((node, step, value))
            return
        note = self.notes.note if is_observable(cls) else self.notes.note_shallow
        note(node, step, value)

    def _put_into(self, node: Node, step: Lookup, value: Any, codes: Iterable[types.CodeType]) -> bool:
        """Whether `codes` do nothing with a container in a class but put something into it."""
        loads = [load for code in codes if step.name in code_names(code) for load in attribute_loads(code, step.name)]
        return self.accumulators.hold(node, step, value, loads)

    def note_hooks(self) -> None:
        """At the end: the methods that every access to an attribute runs, as far as the user's classes have some."""
        self.notes.source = _COMPUTED_NAMES
        for cls in list(self.classes):
            for name in sorted(PATCHED_NAMES):
                if type(cls.__dict__.get(name)) is types.FunctionType:
                    self.note_class(cls, name)
            if self._computes_names and is_observable(cls):
                for name in [name for name in self.classes[cls] if not name.startswith("__")]:
                    self.note_class(cls, name)  # a name that was computed is seen in no code
        self.notes.source = UNKNOWN_SOURCE

    def _note_module(self, module: types.ModuleType, names: Iterable[str]) -> None:
        entries = module.__dict__
        found = sorted(name for name in names if name in entries)
        if not found:
            return
        node = self.notes.root_node(module, module.__name__)
        library = is_library_module(module)
        for name in found:
            value = behind(entries[name])
            if is_cached_function(value):
                self._cached.watch(GlobalPlace(entries, name))
                self.notes.note_cached_function(node, Attribute(name), value)
            elif library and not isinstance(value, types.ModuleType | type):
                self.notes.note_shallow(node, Attribute(name), value)
            else:
                self.notes.note(node, Attribute(name), value)


def _function_inside(value: object) -> types.FunctionType | None:
    """The function that a class entry wraps, if any."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    return value if isinstance(value, types.FunctionType) else None
