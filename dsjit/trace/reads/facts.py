"""Facts: what must still hold for a trace to be what Python would do again.

A `Fact` reads one `Step` from an object that an earlier fact (or a root) yielded, and states an `Expectation` about
what it finds. A list of facts is a straight-line program over *slots*: `slots[fact.slot] = fact.step.get(
slots[fact.parent])`. Running it in Python (`walk`) is the definition of a guard; the native check is tested
against it.
"""

from __future__ import annotations

import enum
import re
import struct
import types
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy
import torch

from dsjit.ir.graph import UNKNOWN_SOURCE, Source
from dsjit.trace.reads.paths import ABSENT, Path, Step

__all__ = [
    "ARGS_SLOT",
    "FUNCTION_SLOT",
    "KWARGS_SLOT",
    "NO_SLOT",
    "ArrayOf",
    "Constant",
    "Expectation",
    "Fact",
    "FunctionOf",
    "Identical",
    "Missing",
    "NumberOf",
    "OfType",
    "OpenNumber",
    "Present",
    "SameAs",
    "TensorOf",
    "has_identity",
    "holds",
    "is_constant",
    "same_constant",
    "shorten",
    "walk",
]

NO_SLOT: Final = -1

ARGS_SLOT: Final = 0
KWARGS_SLOT: Final = 1
FUNCTION_SLOT: Final = 2
"""The slots of a call's roots."""

_SCALAR_TYPES: Final = frozenset(
    {
        type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), type(NotImplemented),
        torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, types.CodeType, re.Pattern,
    }
)  # fmt: skip


_IMMUTABLE: Final = (tuple, frozenset, types.MethodType, staticmethod, classmethod, property)
"""What Python makes anew, or shares, as it likes."""


def is_constant(value: object) -> bool:
    """Whether `value` is immutable all through and is compared by type and value."""
    kind = type(value)
    if kind is tuple or kind is frozenset:
        return all(is_constant(item) for item in value)  # type: ignore[attr-defined]
    if kind is slice:
        return is_constant((value.start, value.stop, value.step))  # type: ignore[attr-defined]
    return kind in _SCALAR_TYPES


def same_constant(a: Any, b: Any) -> bool:
    """Equal in type and value: 1, 1.0 and True differ, 0.0 and -0.0 differ, a NaN equals itself (by bits)."""
    if a is b:
        return True
    kind = type(a)
    if kind is not type(b):
        return False
    if kind is float:
        return struct.pack("d", a) == struct.pack("d", b)
    if kind is complex:
        return struct.pack("dd", a.real, a.imag) == struct.pack("dd", b.real, b.imag)
    if kind is tuple:
        return len(a) == len(b) and all(map(same_constant, a, b))
    if kind is slice:
        return same_constant((a.start, a.stop, a.step), (b.start, b.stop, b.step))
    if kind is frozenset:
        # Python's set equality takes 1, 1.0 and True for one element: the elements' types have to match too.
        return bool(a == b) and sorted(map(_exact, a)) == sorted(map(_exact, b))
    return kind in _SCALAR_TYPES and bool(a == b)


def _exact(value: object) -> str:
    return f"{type(value).__qualname__}:{value!r}"


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant of this type and value (`same_constant`). Tuples of keys may also hold objects, by identity."""

    value: Any

    def matches(self, value: object) -> bool:
        mine = self.value
        if value is mine or same_constant(mine, value):
            return True
        return (
            type(mine) is tuple
            and type(value) is tuple
            and len(mine) == len(value)
            and all(map(same_constant, mine, value))
        )

    def __str__(self) -> str:
        return f"is {shorten(self.value)}"


@dataclass(frozen=True, slots=True, eq=False)
class Identical:
    """This very object: a class, a module, a built-in function, an object whose state cannot be observed."""

    value: Any

    def matches(self, value: object) -> bool:
        return value is self.value

    def __str__(self) -> str:
        return f"is {shorten(self.value)}"


@dataclass(frozen=True, slots=True)
class Missing:
    """Nothing is stored there."""

    def matches(self, value: object) -> bool:
        return value is ABSENT

    def __str__(self) -> str:
        return "is absent"


@dataclass(frozen=True, slots=True)
class Present:
    """Something is stored there."""

    def matches(self, value: object) -> bool:
        return value is not ABSENT

    def __str__(self) -> str:
        return "is there"


@dataclass(frozen=True, slots=True)
class NumberOf:
    """A number of exactly this type, which is only added to."""

    type: type

    def matches(self, value: object) -> bool:
        return type(value) is self.type

    def __str__(self) -> str:
        return f"is a {self.type.__qualname__}"


@dataclass(frozen=True, slots=True)
class OpenNumber:
    """Any float, or any int that int64 holds: the program takes it as an input (`trace.numbers.open_places`)."""

    type: type

    def matches(self, value: object) -> bool:
        if type(value) is int:
            return self.type is int and -(1 << 63) <= value < 1 << 63
        return type(value) is self.type

    def __str__(self) -> str:
        return f"is any {self.type.__qualname__}"


@dataclass(frozen=True, slots=True)
class OfType:
    """An object of exactly this type; what was read from it has facts of its own."""

    type: type

    def matches(self, value: object) -> bool:
        return type(value) is self.type

    def __str__(self) -> str:
        return f"is a {self.type.__qualname__}"


@dataclass(frozen=True, slots=True, eq=False)
class FunctionOf:
    """A function that runs this very code; its closure and defaults have facts of their own once it ran."""

    code: types.CodeType

    def matches(self, value: object) -> bool:
        return type(value) is types.FunctionType and value.__code__ is self.code

    def __str__(self) -> str:
        return f"is the function {self.code.co_qualname} ({self.code.co_filename}:{self.code.co_firstlineno})"


@dataclass(frozen=True, slots=True)
class SameAs:
    """The object that slot `slot` holds, which was found at `path` first."""

    slot: int
    path: Path

    def matches(self, value: object) -> bool:
        raise NotImplementedError("a SameAs needs the slots: use holds()")

    def __str__(self) -> str:
        return f"is {self.path}"


@dataclass(frozen=True, slots=True)
class ArrayOf:
    """An array with this type of elements, shape and content (bytes in row-major order): numpy's, or one of Python's
    own (a `bytearray`, an `array.array`, a `memoryview`), whose elements are told by its buffer's format."""

    type: type
    dtype: str
    shape: tuple[int, ...]
    content: bytes

    @classmethod
    def of(cls, array: Any) -> ArrayOf:
        if isinstance(array, numpy.ndarray):
            return cls(type(array), array.dtype.str, array.shape, array.tobytes())
        with memoryview(array) as view:
            return cls(type(array), view.format, tuple(view.shape or ()), view.tobytes())

    def matches(self, value: object) -> bool:
        return type(value) is self.type and ArrayOf.of(value) == self

    def __str__(self) -> str:
        return f"is a {self.type.__qualname__} of {self.dtype}, shape {self.shape}, with the same content"


@dataclass(frozen=True, slots=True)
class TensorOf:
    """A tensor with this metadata. Shape and strides in elements; the storage offset is free.

    shape, strides: None for a size or a step that is free.
    strides: None for layouts without strides.
    requires_grad: None where grad mode was off during the trace, when it decides nothing.
    """

    type: type
    dtype: torch.dtype
    shape: tuple[int | None, ...]
    strides: tuple[int | None, ...] | None
    device: torch.device
    layout: torch.layout
    conjugated: bool
    negated: bool
    inference: bool
    requires_grad: bool | None

    @classmethod
    def of(cls, tensor: torch.Tensor, grad_mode: bool) -> TensorOf:
        """The metadata of `tensor` now."""
        with torch._C.DisableTorchFunction():  # a mode that watches the traced code does not watch its guard
            strided = tensor.layout is torch.strided
            return cls(
                type(tensor),
                tensor.dtype,
                tuple(tensor.shape),
                tensor.stride() if strided else None,
                tensor.device,
                tensor.layout,
                strided and tensor.is_conj(),
                strided and tensor.is_neg(),
                tensor.is_inference(),
                tensor.requires_grad if grad_mode else None,
            )

    def matches(self, value: object) -> bool:
        if not isinstance(value, torch.Tensor):
            return False
        found = TensorOf.of(value, self.requires_grad is not None)
        if self == found:
            return True
        if None not in self.shape or len(self.shape) != len(found.shape):
            return False
        return self == found.freed(self)

    def freed(self, pattern: TensorOf) -> TensorOf:
        """This, with free sizes and steps where `pattern`, of the same rank, has them."""
        shape = tuple([None if free is None else size for size, free in zip(self.shape, pattern.shape, strict=True)])
        if self.strides is None or pattern.strides is None:
            return replace(self, shape=shape)
        pairs = zip(self.strides, pattern.strides, strict=True)
        return replace(self, shape=shape, strides=tuple([None if free is None else step for step, free in pairs]))

    def __str__(self) -> str:
        grad = "" if self.requires_grad is None else f", requires_grad={self.requires_grad}"
        return (
            f"is a {self.type.__qualname__} of {str(self.dtype).removeprefix('torch.')}, shape {_free(self.shape)}, "
            f"strides {_free(self.strides)}, on {self.device}{grad}"
        )


def _free(sizes: tuple[int | None, ...] | None) -> str:
    """The tuple, with `*` for what is free."""
    return str(sizes).replace("None", "*") if sizes else str(sizes)


Expectation: TypeAlias = (
    Constant | Identical | Missing | Present | NumberOf | OpenNumber | OfType | FunctionOf | SameAs | TensorOf | ArrayOf
)


@dataclass(frozen=True, slots=True)
class Fact:
    """`expectation` holds for what `step` finds in the object of slot `parent`; it is then in slot `slot`.

    slot: `NO_SLOT` when no later fact reads from the value.
    path: of the value. source: the line of the user's that read it; unknown for what comes with the arguments.
    """

    parent: int
    step: Step
    expectation: Expectation
    slot: int
    path: Path
    source: Source = UNKNOWN_SOURCE


def has_identity(expectation: Expectation) -> bool:
    """Whether code can tell such an object from an equal one: it can be changed, or compared by `is`."""
    if isinstance(expectation, OfType):
        return not issubclass(expectation.type, _IMMUTABLE)
    return isinstance(expectation, TensorOf | FunctionOf)


def holds(expectation: Expectation, value: object, slots: Sequence[Any]) -> bool:
    """Whether `value`, found where the expectation says, meets it."""
    if type(expectation) is SameAs:
        return value is slots[expectation.slot]
    return expectation.matches(value)


def walk(facts: Sequence[Fact], slots: list[Any]) -> Fact | None:
    """Check `facts` in order, filling `slots` in place (roots already filled). Returns the first that fails."""
    for fact in facts:
        value = fact.step.get(slots[fact.parent])
        if not holds(fact.expectation, value, slots):
            return fact
        if fact.slot >= 0:
            slots[fact.slot] = value
    return None


def shorten(value: object, limit: int = 80) -> str:
    """`repr(value)`, at most `limit` characters, without running code of the user's."""
    if is_constant(value) or isinstance(value, enum.Enum):
        text = repr(value)
    elif isinstance(value, torch.Tensor):
        text = str(TensorOf.of(value, grad_mode=True)).removeprefix("is ")
    elif value is ABSENT:
        text = "absent"
    elif isinstance(value, type):
        text = value.__qualname__
    elif isinstance(value, types.ModuleType | types.FunctionType | types.BuiltinFunctionType):
        text = f"{value.__name__}"
    elif type(value) is tuple:
        text = f"({', '.join(shorten(item, limit) for item in value)})"
    else:
        text = f"a {type(value).__qualname__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."
