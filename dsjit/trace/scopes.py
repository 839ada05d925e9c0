"""Scopes: the classes, modules, functions and globals that the executed code could read by name.

Reads of globals, of module attributes and of class attributes cannot be intercepted. What is known is which code ran,
and which names it contains; so the entries of those names are noted when the code first runs.
"""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch

from dsjit.trace.library import code_names, global_names, is_library_code, is_library_module, is_observable
from dsjit.trace.notes import Node, Notes
from dsjit.trace.patching import PATCHED_NAMES, PATCHES, Patch, patches_for
from dsjit.trace.paths import ABSENT, Attribute, Item, Lookup
from dsjit.trace.stand_in import behind

__all__ = ["Scopes"]

_HEAP_TYPE: Final = 1 << 9


class Scopes:
    """What was met by name. Implements `trace.notes.Meetings` for the `notes` that it is given afterwards.

    classes: their entries when they were met. patches: taken for the instances that were met.
    """

    notes: Notes

    def __init__(self, on_problem: Callable[[str], None]) -> None:
        self.on_problem = on_problem
        self.classes: dict[type, dict[str, Any]] = {}
        self.patches: set[Patch] = set()
        self._patched: set[type] = set()
        self._names: set[str] = set()
        self._modules: dict[int, types.ModuleType] = {}
        self._ran: set[int] = set()
        self._class_functions: dict[int, list[tuple[type, str]]] = {}
        self._waiting: dict[int, list[Node]] = {}

    # ---------------------------------------------------------------- meetings

    def on_class(self, cls: type) -> None:
        for base in cls.__mro__:
            if base in self.classes or not base.__flags__ & _HEAP_TYPE:
                continue
            entries = {name: value for name, value in base.__dict__.items() if name not in PATCHED_NAMES}
            self.classes[base] = entries
            for name, value in entries.items():
                function = _function_inside(value)
                if function is not None and not is_library_code(function.__code__, function.__globals__):
                    self._class_functions.setdefault(id(function.__code__), []).append((base, name))
                    if id(function.__code__) in self._ran:
                        self.note_class(base, name)

    def on_module(self, module: types.ModuleType) -> None:
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

    # ---------------------------------------------------------------- code

    def on_code(self, code: types.CodeType, scope: dict[str, Any]) -> None:
        """User code runs for the first time, in the globals `scope`."""
        self._ran.add(id(code))
        notes = self.notes
        node = notes.root_node(scope, f"globals({scope.get('__name__', '?')})")
        for name in global_names(code):
            notes.note(node, Item(name), scope.get(name, ABSENT))
            if name not in scope:
                outer = notes.root_node(builtins.__dict__, "globals(builtins)")
                notes.note(outer, Item(name), builtins.__dict__.get(name, ABSENT))
        new = code_names(code) - self._names
        if new:
            self._names |= new
            for module in list(self._modules.values()):
                self._note_module(module, new)
            for name in sorted(new):
                imported = sys.modules.get(name)
                if isinstance(imported, types.ModuleType) and name not in scope:
                    self.on_module(imported)
        for cls, name in self._class_functions.get(id(code), ()):
            self.note_class(cls, name)
        for function in self._waiting.pop(id(code), ()):
            notes.note_function(function)

    def note_class(self, cls: type, name: str) -> None:
        """What attribute lookup finds in a class under `name`."""
        step = Lookup(name)
        note = self.notes.note if is_observable(cls) else self.notes.note_shallow
        note(self.notes.root_node(cls, cls.__qualname__), step, step.get(cls))

    def note_classes(self) -> None:
        """At the end: the class attributes that the executed code mentions."""
        for cls, entries in list(self.classes.items()):
            for name in sorted(self._names & entries.keys()):
                if name in cls.__dict__:
                    self.note_class(cls, name)
            for name in sorted(PATCHED_NAMES):
                if type(cls.__dict__.get(name)) is types.FunctionType:
                    self.note_class(cls, name)

    def _note_module(self, module: types.ModuleType, names: Iterable[str]) -> None:
        entries = module.__dict__
        found = sorted(name for name in names if name in entries)
        if not found:
            return
        node = self.notes.root_node(module, module.__name__)
        library = is_library_module(module)
        for name in found:
            value = behind(entries[name])
            if library and not isinstance(value, types.ModuleType | type):
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
