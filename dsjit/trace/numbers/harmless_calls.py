"""C functions that show traced numbers among their arguments to nobody, or to a watch (see `numbers_leaks`)."""

from __future__ import annotations

import collections
import dis
import functools
import os
import sys
import threading
import time
import types
from typing import Any, Final

import torch

from dsjit.trace.reads.paths import static_lookup

__all__ = ["ORDERING", "is_harmless_call", "is_of_torch", "reads_numbers"]


def _methods(cls: type, *names: str) -> list[Any]:
    return [cls.__dict__[name] for name in names]


_METHODS: Final = frozenset(
    map(
        id,
        [
            *_methods(list, "append", "extend", "insert", "pop", "copy", "clear", "reverse", "index", "count"),
            *_methods(tuple, "index", "count"),
            *_methods(dict, "get", "items", "keys", "values", "update", "setdefault", "pop", "copy", "clear"),
            *_methods(set, "add", "discard", "remove", "update", "copy", "clear"),
            *_methods(collections.OrderedDict, "items", "keys", "values", "update", "setdefault", "pop", "copy"),
            *_methods(collections.deque, "append", "appendleft", "pop", "popleft", "clear", "extend"),
            *(entry for entry in vars(str).values() if type(entry) is types.MethodDescriptorType),
        ],
    )
)
"""Methods that keep objects, or ask them."""

_FUNCTIONS: Final = frozenset(
    map(
        id,
        (
            *(len, isinstance, issubclass, callable, id, abs, round, repr, format, iter, next, all, any, hash, divmod),
            *(getattr, setattr, hasattr, delattr, ascii, chr),
            *(time.time, time.time_ns, os.getpid, os.fspath, threading.get_ident, sys._getframe),
            # From CPython 3.12 on, the sum of floats (and of nothing else) is compensated.
            *((sum,) if sys.version_info < (3, 12) else ()),
        ),
    )
)
ORDERING: Final = frozenset(map(id, (min, max, sorted)))
"""Functions that compare, unless a key function sees the objects."""

_TORCH_FUNCTIONS: Final = ("torch._C._nn", "torch._C._linalg", "torch._C._fft", "torch._C._special")

_TORCH_QUERIES: Final = (
    "_has_torch_function", "_get_", "_is_", "is_", "_set_grad", "_len_torch", "_push", "_pop", "_add", "_log_api",
    "set_autocast", "get_autocast", "autocast_", "clear_autocast",
)  # fmt: skip
"""How functions of `torch._C` are called that take no numbers."""


def reads_numbers(function: Any) -> bool:
    """Whether `function` is a C function of which it is not known that it shows numbers to nobody."""
    kind = type(function)
    if kind is types.BuiltinFunctionType:
        root = str(function.__module__).partition(".")[0]
        return root not in ("torch", "_warnings") and function is not print and not is_harmless_call(function, _NO_KEY)
    return kind in _C_FUNCTIONS


_C_FUNCTIONS: Final = (types.BuiltinFunctionType, types.MethodDescriptorType, types.ClassMethodDescriptorType)
_NO_KEY: Final = (lambda: None).__code__


def is_harmless_call(function: Any, caller: types.CodeType) -> bool:
    """Whether a call of the C function by `caller` shows it no number, or shows it to a watch."""
    if id(function) in _FUNCTIONS:
        return True
    if id(function) in ORDERING:
        return not _passes_key(caller)
    owner, module = function.__self__, function.__module__
    if isinstance(owner, torch.Tensor) or function.__qualname__.startswith("_VariableFunctionsClass."):
        return True
    if isinstance(module, str) and module.partition(".")[0] == "torch":
        return module in _TORCH_FUNCTIONS or function.__name__.startswith(_TORCH_QUERIES)
    if isinstance(owner, type) and function == _asks_class(owner):
        return True
    if owner is None or isinstance(owner, types.ModuleType | type):
        return bool(module == "_abc") or function.__qualname__ == "object.__new__"
    keeps: bool = type(owner).__module__ in ("_thread", "_contextvars")
    return keeps or id(static_lookup(type(owner), function.__name__)) in _METHODS


def _asks_class(cls: type) -> Any:
    """`isinstance(..., cls)`, as classes themselves answer it."""
    return type.__dict__["__instancecheck__"].__get__(cls)


def is_of_torch(function: Any) -> bool:
    return isinstance(function.__self__, torch.Tensor) or "torch" in f"{function.__module__}{function.__qualname__}"


@functools.lru_cache(maxsize=1024)
def _passes_key(code: types.CodeType) -> bool:
    """Whether calls in `code` may pass `key=`."""
    names = any(isinstance(const, tuple) and "key" in const for const in code.co_consts)
    return names or any(each.opname == "CALL_FUNCTION_EX" for each in dis.get_instructions(code))
