"""How the arithmetic and the comparisons of Python's numbers are recorded (see `trace.numbers.numbers`)."""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, Final, Protocol

import torch

from dsjit.ir.graph import Arg, TensorType, Value
from dsjit.trace.looks.outcome import Outcome, OutcomeKind
from dsjit.trace.numbers.object import ARITHMETIC, CALLED

__all__ = [
    "BINARY",
    "BOUNDS",
    "CALLS",
    "COMPARISON",
    "INCOMPARABLE",
    "LARGEST_EXACT",
    "SCALAR",
    "TESTS",
    "TRUTH",
    "TYPES",
    "UNARY",
    "WHOLE",
    "WHOLE_BOUND",
    "WHOLE_DTYPES",
    "NumberRecorder",
    "found_among",
    "is_finite",
    "number_outcome",
    "plain",
]

aten = torch.ops.aten

SCALAR: Final = TensorType((), torch.float64, (), torch.device("cpu"))
"""The type of the Value of a float."""

WHOLE: Final = TensorType((), torch.int64, (), torch.device("cpu"))
"""The type of the Value of an int."""

TRUTH: Final = TensorType((), torch.bool, (), torch.device("cpu"))

TYPES: Final[dict[type, TensorType]] = {float: SCALAR, int: WHOLE, bool: TRUTH}
WHOLE_DTYPES: Final = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
WHOLE_BOUND: Final = 2.0**63

BINARY: Final[dict[str, Any]] = {
    "add": aten.add.Tensor,
    "sub": aten.sub.Tensor,
    "mul": aten.mul.Tensor,
    "truediv": aten.div.Tensor,
}

BOUNDS: Final[dict[str, Callable[[float, float], float]]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "truediv": lambda a, b: math.inf,
}
"""From what the magnitudes of the operands cannot exceed, what that of the result cannot exceed."""

CALLS: Final[dict[str, Callable[..., Any]]] = {
    **{name: getattr(operator, name) for name in (*ARITHMETIC, *CALLED, "xor", "lshift", "rshift", "neg", "invert")},
    "and": operator.and_,
    "or": operator.or_,
    "abs": operator.abs,
}
"""What computes with ints."""

TESTS: Final[dict[Any, Any]] = {
    math.isnan: aten.ne.Tensor,
    math.isinf: aten.eq.Scalar,
    math.isfinite: aten.lt.Scalar,
}
"""Functions of `math` that return a truth: of the number and itself, or of its magnitude and infinity."""

UNARY: Final[dict[str, Any]] = {"neg": aten.neg.default, "abs": aten.abs.default}

COMPARISON: Final[dict[str, tuple[Any, Any]]] = {
    "lt": (aten.lt.Scalar, aten.lt.Tensor),
    "le": (aten.le.Scalar, aten.le.Tensor),
    "gt": (aten.gt.Scalar, aten.gt.Tensor),
    "ge": (aten.ge.Scalar, aten.ge.Tensor),
    "eq": (aten.eq.Scalar, aten.eq.Tensor),
    "ne": (aten.ne.Scalar, aten.ne.Tensor),
}

LARGEST_EXACT: Final = 1 << 53
"""Integers up to here are floats, too; above, Python compares them exactly, and a float64 kernel cannot."""

INCOMPARABLE: Final = (type(None), str, bytes, list, tuple, dict, set)
"""Types that have no arithmetic with floats, and do not look at one."""


class NumberRecorder(Protocol):
    """What numbers need of the recorder: nodes, looks, and a way to say that the trace cannot go on.

    watch_calls: from now on, calls of torch functions may have numbers among their arguments. pause, resume: see there.
    """

    def emit(self, op: Any, args: tuple[Arg, ...], kwargs: Mapping[str, Arg], type_: TensorType) -> Value: ...

    def constant(self, number: float) -> Value: ...

    def look_at(self, kind: OutcomeKind, value: Value, outcome: Outcome) -> None: ...

    def value_of(self, tensor: torch.Tensor) -> Value: ...

    def is_recording(self) -> bool: ...

    def give_up(self, reason: str) -> None: ...

    def watch_calls(self) -> None: ...

    @property
    def pause(self) -> Callable[[], None]: ...

    @property
    def resume(self) -> Callable[[], None]: ...


def plain(number: Any) -> Any:
    """A traced number, or any other, as a plain one."""
    return float.__pos__(number) if isinstance(number, float) else int.__int__(number)


def number_outcome(number: float) -> Outcome:
    """What a look of kind NUMBER sees."""
    return struct.pack("<d", number) if isinstance(number, float) else (int, plain(number))


def found_among(arguments: Any, kinds: Set[type]) -> Iterator[float]:
    if type(arguments) in kinds:
        yield arguments
    elif isinstance(arguments, list | tuple):
        for item in arguments:
            yield from found_among(item, kinds)
    elif isinstance(arguments, dict):
        for item in arguments.values():
            yield from found_among(item, kinds)
    elif isinstance(arguments, slice):
        yield from found_among((arguments.start, arguments.stop, arguments.step), kinds)


def is_finite(number: float) -> bool:
    value = plain(number)
    return bool(value - value == 0)
