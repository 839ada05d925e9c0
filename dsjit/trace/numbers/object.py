"""Traced numbers: numbers that report what is done with them, and that can become plain ones where they stand.

A traced number is an instance of a subclass of `float` or `int` without any storage of its own, so that its memory is
laid out, allocated and freed exactly as a plain number's. That is what lets `become_plain` change the type of an object
that others hold: wherever it was put, a plain number is there afterwards.

C code reads an int without asking it when its type says that it is one (`PyLong_Check`, a flag of the type); for any
other object it asks `__index__`. So the flag is taken from the class of traced ints: whoever needs one as an index, a
length or a C integer then asks. What would refuse it instead, `trace.numbers.leaks` knows nothing harmless of; but for
torch's functions, during whose calls the number has a class with the flag (`revealed_class`).
"""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable
from typing import Any, Final, Protocol

__all__ = [
    "ARITHMETIC",
    "BITWISE",
    "CALLED",
    "COMPARISONS",
    "NumberListener",
    "become",
    "become_plain",
    "can_become_plain",
    "number_class",
    "revealed_class",
]

ARITHMETIC: Final = ("add", "sub", "mul", "truediv")
"""Names of binary operators (without underscores) that a Graph computes as Python does: IEEE 754 fixes the result."""

CALLED: Final = ("pow", "floordiv", "mod")
"""Names of binary operators that no ATen op computes to the same bit: a Graph calls Python's own."""

BITWISE: Final = ("and", "or", "xor", "lshift", "rshift")
"""The same, of ints alone."""

COMPARISONS: Final = ("lt", "le", "gt", "ge", "eq", "ne")

_SAME: Final = frozenset({"__new__", "__getattribute__", "__doc__", "fromhex", "__getformat__", "from_bytes"})
"""Attributes of `float` and `int` that are the same for every number."""


class NumberListener(Protocol):
    """What a traced number asks: for a result that is traced itself, or for what Python may see of it."""

    def binary(self, name: str, number: float, other: Any, reflected: bool) -> Any: ...

    def compare(self, name: str, number: float, other: Any) -> Any: ...

    def unary(self, name: str, number: float) -> float: ...

    def truth(self, number: float) -> bool: ...

    def converted(self, number: float, kind: type[float]) -> float: ...

    def rounded(self, number: float) -> float: ...

    def pin(self, number: float) -> None: ...

    def text(self, number: float, method: str, arguments: tuple[Any, ...]) -> str: ...


def number_class(listener: NumberListener, kind: type[float]) -> type[float]:
    """The class of the traced numbers that report to `listener`. For Python code it is `kind`, which is `float` or
    `int`, in all but identity."""
    entries: dict[str, Any] = {
        "__doc__": kind.__doc__,
        "__class__": property(lambda self: kind),
        "__bool__": lambda self: listener.truth(self),
        "__int__": lambda self: listener.converted(self, int),
        "__float__": lambda self: listener.converted(self, float),
        "__trunc__": lambda self: listener.converted(self, int),
        "__pos__": lambda self: self,
        "__abs__": lambda self: listener.unary("abs", self),
        "__neg__": lambda self: listener.unary("neg", self),
        "__round__": _rounded(listener, kind),
        "conjugate": lambda self: self,
        "real": property(lambda self: self),
        "imag": property(lambda self: kind(0)),
    }
    if kind is int:
        entries["__invert__"] = lambda self: listener.unary("invert", self)
        entries["__torch_function__"] = classmethod(_refuse)  # operators of tensors take it for one of theirs
    for name in (*ARITHMETIC, *CALLED, *(BITWISE if kind is int else ())):
        entries[f"__{name}__"] = _binary(listener, kind, name, False)
        entries[f"__r{name}__"] = _binary(listener, kind, name, True)
    for name in COMPARISONS:
        entries[f"__{name}__"] = _comparison(listener, name)
    for name in ("__format__", "__repr__", "__str__"):
        entries[name] = _text(listener, name)
    for name, method in {**vars(object), **vars(kind)}.items():
        inherited = name in vars(kind) or name in ("__reduce__", "__reduce_ex__", "__str__")
        if inherited and name not in _SAME and name not in entries:
            entries[name] = _pinned(listener, method)
    return _plain_subclass(type(kind.__name__, (), {"__slots__": (), **entries}), kind)


def revealed_class(kind: type[float]) -> type[float]:
    """The same class of traced ints, but that C code takes its instances for ints, and reads them unasked."""
    return _plain_subclass(kind.__mro__[1], int, _IS_INT)


def _refuse(cls: type, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    """The trace's own mode comes first, and calls torch with plain numbers."""
    return NotImplemented


def _binary(listener: NumberListener, kind: type[float], name: str, reflected: bool) -> Callable[[float, Any], Any]:
    def method(self: float, other: Any, *modulus: Any) -> Any:
        if modulus:  # of the function pow
            listener.pin(self)
            return getattr(kind, f"__{name}__")(self, other, *modulus)
        return listener.binary(name, self, other, reflected)

    return method


def _comparison(listener: NumberListener, name: str) -> Callable[[float, Any], Any]:
    def method(self: float, other: Any) -> Any:
        return listener.compare(name, self, other)

    return method


def _rounded(listener: NumberListener, kind: type[float]) -> Callable[..., Any]:
    def method(self: float, ndigits: Any = None) -> Any:
        if ndigits is None:
            return listener.rounded(self)
        listener.pin(self)
        return kind.__round__(self, ndigits)

    return method


def _text(listener: NumberListener, name: str) -> Callable[..., str]:
    def method(self: float, *arguments: Any) -> str:
        return listener.text(self, name, arguments)

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


def _plain_subclass(methods: type, kind: type[float], flag: int = 0) -> type[float]:
    """A subclass of `methods` and `kind` whose instances are unknown to the garbage collector, and that C code does
    not take for ints unless `flag` is _IS_INT.

    Those of a class that a statement made are known to it, and carry what it needs in front of the object.
    """
    make = ctypes.pythonapi.PyType_FromSpecWithBases
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.py_object]
    slots = ctypes.addressof(_NO_SLOTS)
    name = f"builtins.{kind.__name__}".encode()
    spec = _TypeSpec(name, kind.__basicsize__, 0, _DEFAULT_FLAGS, slots)
    made: type[float] = make(ctypes.addressof(spec), (methods, kind))
    made.__name__ = kind.__name__
    flags = ctypes.c_ulong.from_address(id(made) + _FLAGS_OFFSET)
    if flags.value == made.__flags__:
        flags.value = flags.value & ~_IS_INT | flag
    return made


_FLAGS_OFFSET: Final = 168
"""Bytes from the start of a type to `tp_flags` (Include/cpython/object.h)."""

_HEAP_TYPE: Final = 1 << 9
_IS_INT: Final = 1 << 24
"""`Py_TPFLAGS_LONG_SUBCLASS`, which is what `PyLong_Check` looks at."""

_TYPE_OFFSET: Final = object.__basicsize__ - ctypes.sizeof(ctypes.c_void_p)
"""Bytes from the start of an object to the pointer to its type (Include/object.h)."""


def become_plain(number: float) -> None:
    """Make an instance of a subclass of float or int, which must have no storage of its own, an instance of that."""
    become(number, float if isinstance(number, float) else int)


def become(number: float, kind: type[float]) -> None:
    """Make a number that has storage of its own (no small int of Python's) an instance of `kind`, which is laid out as
    its class."""
    found = ctypes.c_void_p.from_address(id(number) + _TYPE_OFFSET)
    if found.value == id(kind):
        return
    former = ctypes.cast(found, ctypes.py_object)
    # An object owns a reference to its type when that type was made at run time.
    if kind.__flags__ & _HEAP_TYPE:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kind))
    found.value = id(kind)
    if former.value.__flags__ & _HEAP_TYPE:
        ctypes.pythonapi.Py_DecRef(former)


@functools.cache
def can_become_plain() -> bool:
    """Whether objects of this interpreter are laid out as `become_plain` takes them to be."""
    return all(_is_laid_out_as_thought(kind, value) for kind, value in ((float, 0.5), (int, 3)))


def _is_laid_out_as_thought(kind: type[float], value: float) -> bool:
    probe = _plain_subclass(type(kind.__name__, (), {"__slots__": ()}), kind)
    number = probe(value)
    if probe.__basicsize__ != kind.__basicsize__ or probe.__itemsize__ != kind.__itemsize__ or gc.is_tracked(number):
        return False
    if probe.__flags__ & _IS_INT or type(value) is not kind:
        return False
    if ctypes.c_void_p.from_address(id(number) + _TYPE_OFFSET).value != id(probe):
        return False
    return ctypes.c_void_p.from_address(id(value) + _TYPE_OFFSET).value == id(kind)
