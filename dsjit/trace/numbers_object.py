"""Traced numbers: floats that report what is done with them, and that can become plain floats where they stand.

A traced number is an instance of a subclass of `float` without any storage of its own, so that its memory is laid out,
allocated and freed exactly as a plain float's. That is what lets `become_float` change the type of an object that
others hold: wherever it was put, a plain float is there afterwards.
"""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable
from typing import Any, Final, Protocol

__all__ = ["ARITHMETIC", "CALLED", "COMPARISONS", "NumberListener", "become_float", "can_become_float", "number_class"]

ARITHMETIC: Final = ("add", "sub", "mul", "truediv")
"""Names of binary operators (without underscores) that a Graph computes as Python does: IEEE 754 fixes the result."""

CALLED: Final = ("pow", "floordiv", "mod")
"""Names of binary operators that no ATen op computes to the same bit: a Graph calls Python's own."""

COMPARISONS: Final = ("lt", "le", "gt", "ge", "eq", "ne")

_UNARY: Final = ("neg", "abs")

_SEEN: Final = frozenset(
    {
        *(f"__{name}__" for name in (*ARITHMETIC, *CALLED, *COMPARISONS, *_UNARY)),
        *(f"__r{name}__" for name in (*ARITHMETIC, *CALLED)),
        *("__bool__", "__int__", "__trunc__", "__round__", "__pos__", "__new__", "__getattribute__", "__doc__"),
        *("conjugate", "real", "imag", "fromhex", "__getformat__"),
    }
)
"""Attributes of `float` that do not give the number away: defined below, or the same for every number."""


class NumberListener(Protocol):
    """What a traced number asks: for a result that is traced itself, or for what Python may see of it."""

    def binary(self, name: str, number: float, other: Any, reflected: bool) -> Any: ...

    def compare(self, name: str, number: float, other: Any) -> Any: ...

    def unary(self, name: str, number: float) -> float: ...

    def truth(self, number: float) -> bool: ...

    def integer(self, number: float, rounded: bool) -> int: ...

    def pin(self, number: float) -> None: ...


def number_class(listener: NumberListener) -> type[float]:
    """The class of the traced numbers that report to `listener`. For Python code it is `float` in all but identity."""
    entries: dict[str, Any] = {
        "__doc__": float.__doc__,
        "__class__": property(lambda self: float),
        "__bool__": lambda self: listener.truth(self),
        "__int__": lambda self: listener.integer(self, False),
        "__trunc__": lambda self: listener.integer(self, False),
        "__pos__": lambda self: self,
        "__abs__": lambda self: listener.unary("abs", self),
        "__neg__": lambda self: listener.unary("neg", self),
        "__round__": _rounded(listener),
        "conjugate": lambda self: self,
        "real": property(lambda self: self),
        "imag": property(lambda self: 0.0),
    }
    for name in (*ARITHMETIC, *CALLED):
        entries[f"__{name}__"] = _binary(listener, name, False)
        entries[f"__r{name}__"] = _binary(listener, name, True)
    for name in COMPARISONS:
        entries[f"__{name}__"] = _comparison(listener, name)
    for name, method in {**vars(object), **vars(float)}.items():
        if name not in _SEEN and (name in vars(float) or name in ("__reduce__", "__reduce_ex__", "__str__")):
            entries[name] = _pinned(listener, method)
    return _plain_subclass(type("float", (), {"__slots__": (), **entries}))


def _binary(listener: NumberListener, name: str, reflected: bool) -> Callable[[float, Any], Any]:
    def method(self: float, other: Any, *modulus: Any) -> Any:
        if modulus:  # of the function pow, which no float has
            listener.pin(self)
            return getattr(float, f"__{name}__")(self, other, *modulus)
        return listener.binary(name, self, other, reflected)

    return method


def _comparison(listener: NumberListener, name: str) -> Callable[[float, Any], Any]:
    def method(self: float, other: Any) -> Any:
        return listener.compare(name, self, other)

    return method


def _rounded(listener: NumberListener) -> Callable[..., Any]:
    def method(self: float, ndigits: Any = None) -> Any:
        if ndigits is None:
            return listener.integer(self, True)
        listener.pin(self)
        return float.__round__(self, ndigits)

    return method


def _pinned(listener: NumberListener, original: Any) -> Callable[..., Any]:
    """A method that sees the number itself."""

    def method(self: float, *arguments: Any) -> Any:
        listener.pin(self)
        return original(self, *arguments)

    return method


class _TypeSpec(ctypes.Structure):
    """`PyType_Spec` (Include/object.h), which is part of the stable ABI."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("basicsize", ctypes.c_int),
        ("itemsize", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("slots", ctypes.c_void_p),
    )


_NO_SLOTS: Final = ctypes.create_string_buffer(16)
_DEFAULT_FLAGS: Final = 1 << 18 | 1 << 10
"""`Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE`."""


def _plain_subclass(methods: type) -> type[float]:
    """A subclass of `methods` and float whose instances are unknown to the garbage collector.

    Those of a class that a statement made are known to it, and carry what it needs in front of the object.
    """
    make = ctypes.pythonapi.PyType_FromSpecWithBases
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.py_object]
    slots = ctypes.addressof(_NO_SLOTS)
    spec = _TypeSpec(b"builtins.float", float.__basicsize__, 0, _DEFAULT_FLAGS, slots)
    kind: type[float] = make(ctypes.addressof(spec), (methods, float))
    kind.__name__ = "float"
    return kind


_TYPE_OFFSET: Final = object.__basicsize__ - ctypes.sizeof(ctypes.c_void_p)
"""Bytes from the start of an object to the pointer to its type (Include/object.h)."""


def become_float(number: float) -> None:
    """Make an instance of a subclass of float, which must have no storage of its own, an instance of float."""
    kind = ctypes.c_void_p.from_address(id(number) + _TYPE_OFFSET)
    if kind.value == id(float):
        return
    former = ctypes.cast(kind, ctypes.py_object)
    kind.value = id(float)
    # An object owns a reference to its type when that type was made at run time.
    ctypes.pythonapi.Py_DecRef(former)


@functools.cache
def can_become_float() -> bool:
    """Whether objects of this interpreter are laid out as `become_float` takes them to be."""
    probe = _plain_subclass(type("float", (), {"__slots__": ()}))
    number = probe(0.5)
    if probe.__basicsize__ != float.__basicsize__ or gc.is_tracked(number):
        return False
    if ctypes.c_void_p.from_address(id(number) + _TYPE_OFFSET).value != id(probe):
        return False
    return ctypes.c_void_p.from_address(id(0.5) + _TYPE_OFFSET).value == id(float)
