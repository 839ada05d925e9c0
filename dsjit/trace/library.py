"""Which code and which classes belong to the user, and which to Python, torch and dsjit.

What library code keeps for itself is not guarded; what user code names is. `torch.nn` and `torch.backends` count as
user code: their modules read globals (hooks, fast-path switches) that users do change.
"""

from __future__ import annotations

import dis
import functools
import os
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any, Final

import llvmlite
import numpy
import torch

__all__ = [
    "code_names",
    "global_names",
    "is_library_code",
    "is_library_file",
    "is_library_module",
    "is_observable",
    "is_plumbing",
    "is_stdlib_file",
]


def _package(module: types.ModuleType) -> str:
    return os.path.dirname(os.path.abspath(module.__file__ or "")) + os.sep


_STDLIB: Final = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_SITE_PACKAGES: Final = tuple(os.path.join(_STDLIB, name) + os.sep for name in ("site-packages", "dist-packages"))
_LIBRARIES: Final = (
    _package(torch),
    _package(numpy),
    _package(llvmlite),
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
)
_AS_USER: Final = (os.path.join(_package(torch), "nn") + os.sep, os.path.join(_package(torch), "backends") + os.sep)

_HEAP_TYPE: Final = 1 << 9
_IMMUTABLE_TYPE: Final = 1 << 8

_PLUMBING: Final = frozenset(
    {
        "_frozen_importlib", "_frozen_importlib_external", "_io", "_thread", "abc", "asyncio", "builtins", "concurrent",
        "contextlib", "contextvars", "ctypes", "dsjit", "enum", "functools", "importlib", "inspect", "io", "llvmlite",
        "logging", "multiprocessing", "numpy", "os", "queue", "re", "threading", "typing", "unittest", "warnings",
        "weakref",
    }
)  # fmt: skip
_TORCH_PLUMBING: Final = frozenset({"backends", "cuda", "fx", "jit", "library", "overrides", "package", "profiler"})


@functools.lru_cache(maxsize=4096)
def is_stdlib_file(filename: str) -> bool:
    """Whether `filename` (of a code object) is Python's own: the standard library or a frozen module."""
    return filename.startswith("<frozen") or (
        filename.startswith(_STDLIB) and not filename.startswith(_SITE_PACKAGES)
    )


@functools.lru_cache(maxsize=4096)
def is_library_file(filename: str) -> bool:
    """Whether code from `filename` is Python's, torch's (less `torch.nn`, `torch.backends`), numpy's or dsjit's."""
    if filename.startswith(_AS_USER):
        return False
    return is_stdlib_file(filename) or filename.startswith(_LIBRARIES)


def is_library_module(module: types.ModuleType) -> bool:
    """Whether the module is built in or comes from a library file; `__main__` and modules made by hand are not."""
    filename = module.__dict__.get("__file__")
    if isinstance(filename, str):
        return is_library_file(filename)
    return module.__name__ in sys.builtin_module_names


def _cached_by_class(predicate: Callable[[type], bool]) -> Callable[[type], bool]:
    known: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()

    @functools.wraps(predicate)
    def cached(cls: type) -> bool:
        found = known.get(cls)
        if found is None:
            found = known[cls] = predicate(cls)
        return found

    return cached


@_cached_by_class
def is_observable(cls: type) -> bool:
    """Whether reads from instances of `cls` can be observed and are worth it: a class made in Python, not plumbing."""
    if not cls.__flags__ & _HEAP_TYPE or cls.__flags__ & _IMMUTABLE_TYPE:
        return False
    return not is_plumbing(cls)


@_cached_by_class
def is_plumbing(cls: type) -> bool:
    """Whether `cls` belongs to machinery of Python or torch whose own state is not the program's (locks, loggers)."""
    module = cls.__module__ if isinstance(cls.__module__, str) else ""
    top, _, rest = module.partition(".")
    if top == "torch":
        second = rest.partition(".")[0]
        return second.startswith("_") or second in _TORCH_PLUMBING
    return top in _PLUMBING


def is_library_code(code: types.CodeType, scope: dict[str, Any]) -> bool:
    """`is_library_file` for code that runs in the globals `scope`, which tell whose generated code (`<string>`) is."""
    filename = code.co_filename
    if filename.startswith("<"):
        owner = scope.get("__file__")
        filename = owner if isinstance(owner, str) else filename
    return is_library_file(filename)


@functools.lru_cache(maxsize=4096)
def _names(code: _ById) -> tuple[tuple[str, ...], frozenset[str]]:
    globals_: dict[str, None] = {}
    names = code.code.co_names
    instructions = code.code.co_code
    extended = 0
    for position in range(0, len(instructions), 2):
        opcode = instructions[position]
        argument = instructions[position + 1] | extended
        extended = 0
        if opcode == dis.EXTENDED_ARG:
            extended = argument << 8
        elif opcode in _LOAD_GLOBAL:
            globals_[names[argument >> 1]] = None
        elif opcode in _PLAIN_GLOBAL:
            globals_[names[argument]] = None
    return tuple(globals_), frozenset(names)


_LOAD_GLOBAL: Final = frozenset({dis.opmap["LOAD_GLOBAL"]})
_PLAIN_GLOBAL: Final = frozenset(
    dis.opmap[name]
    for name in ("LOAD_NAME", "STORE_NAME", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS")
    if name in dis.opmap
)


class _ById:
    """A code object that hashes by identity (code objects hash by all they contain, slowly)."""

    __slots__ = ("code",)

    def __init__(self, code: types.CodeType) -> None:
        self.code = code

    def __hash__(self) -> int:
        return id(self.code)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.code is self.code


def global_names(code: types.CodeType) -> tuple[str, ...]:
    """The global (or built-in) names that `code` reads or writes, nested functions not included."""
    return _names(_ById(code))[0]


def code_names(code: types.CodeType) -> frozenset[str]:
    """Every name in `code`: globals, attributes, methods, imported modules."""
    return _names(_ById(code))[1]
