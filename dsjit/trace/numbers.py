"""Numbers that were taken out of tensors, and stay in the graph.

`t.item()` gives Python a float. When a program had to see that float again on each run, it would be a new outcome on
each run. So the traced call gets a *traced number*: a float that is what `t.item()` is, and that records what is done
with it. Arithmetic becomes nodes on float64 tensors of no dimension, which compute what Python computed. A comparison
is a look at a truth, so that the same way is taken whatever the numbers are, as long as the truths are the same.

Everything else that sees the number *pins* it: then its value is an outcome, as if it had been looked at there and
then, and the object becomes a plain float where it stands. What sees numbers unnoticed is found by
`trace.numbers_leaks`. At the end of the trace every traced number becomes a plain float.
"""

from __future__ import annotations

import math
import operator
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol

import torch

from dsjit.ir.graph import Arg, TensorType, Value
from dsjit.ops.python_numbers import compute
from dsjit.trace.numbers_math import MathCalls
from dsjit.trace.numbers_object import CALLED, become_float, can_become_float, number_class
from dsjit.trace.outcome import Outcome, OutcomeKind
from dsjit.trace.paths import ABSENT

__all__ = ["NumberRecorder", "Numbers", "number_outcome"]

aten = torch.ops.aten

SCALAR: Final = TensorType((), torch.float64, (), torch.device("cpu"))
"""The type of the Value of a number."""

_TRUTH: Final = TensorType((), torch.bool, (), torch.device("cpu"))

_BINARY: Final[dict[str, Any]] = {
    "add": aten.add.Tensor,
    "sub": aten.sub.Tensor,
    "mul": aten.mul.Tensor,
    "truediv": aten.div.Tensor,
}

_BOUNDS: Final[dict[str, Callable[[float, float], float]]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "truediv": lambda a, b: math.inf,
}
"""From what the magnitudes of the operands cannot exceed, what that of the result cannot exceed."""

_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "pow": operator.pow,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}

_TESTS: Final[dict[Any, Any]] = {
    math.isnan: aten.ne.Tensor,
    math.isinf: aten.eq.Scalar,
    math.isfinite: aten.lt.Scalar,
}
"""Functions of `math` that return a truth: of the number and itself, or of its magnitude and infinity."""

_UNARY: Final[dict[str, Any]] = {"neg": aten.neg.default, "abs": aten.abs.default}

_COMPARISON: Final[dict[str, tuple[Any, Any]]] = {
    "lt": (aten.lt.Scalar, aten.lt.Tensor),
    "le": (aten.le.Scalar, aten.le.Tensor),
    "gt": (aten.gt.Scalar, aten.gt.Tensor),
    "ge": (aten.ge.Scalar, aten.ge.Tensor),
    "eq": (aten.eq.Scalar, aten.eq.Tensor),
    "ne": (aten.ne.Scalar, aten.ne.Tensor),
}

_LARGEST_EXACT: Final = 1 << 53
"""Integers up to here are floats, too; above, Python compares them exactly, and a float64 kernel cannot."""

_INCOMPARABLE: Final = (type(None), str, bytes, list, tuple, dict, set)
"""Types that have no arithmetic with floats, and do not look at one."""


class NumberRecorder(Protocol):
    """What numbers need of the recorder: nodes, looks, and a way to say that the trace cannot go on."""

    def emit(self, op: Any, args: tuple[Arg, ...], kwargs: Mapping[str, Arg], type_: TensorType) -> Value: ...

    def constant(self, number: float) -> Value: ...

    def look_at(self, kind: OutcomeKind, value: Value, outcome: Outcome) -> None: ...

    def value_of(self, tensor: torch.Tensor) -> Value: ...

    def is_recording(self) -> bool: ...

    def give_up(self, reason: str) -> None: ...


@dataclass(slots=True)
class _Entry:
    """A number that was handed out, and its Value.

    bound: what its magnitude cannot exceed as long as it is finite. pinned: its value is an outcome.
    addition: the operands, when it is a sum, or a difference.
    """

    number: float
    value: Value
    bound: float
    pinned: bool = False
    addition: tuple[Any, Any, bool] | None = None


def number_outcome(number: float) -> Outcome:
    """What a look of kind NUMBER sees."""
    return struct.pack("<d", number)


class Numbers:
    """The traced numbers of one trace; a context around it.

    may_hand_out: whether nothing that could see a number unnoticed is known to the traced code.
    """

    def __init__(self, recorder: NumberRecorder, may_hand_out: Callable[[], bool]) -> None:
        self._recorder = recorder
        self._may_hand_out = may_hand_out
        self._thread = threading.get_ident()
        self._entries: dict[int, _Entry] = {}
        self._class: type[float] | None = None
        self.math = MathCalls(self)

    def __enter__(self) -> Numbers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.math.withdraw()
        for entry in self._entries.values():
            become_float(entry.number)

    # -- numbers come and go -------------------------------------------------------------------------------------

    def value_to_hand_out(self, tensor: torch.Tensor) -> Value | None:
        """The Value of `tensor.item()`; None when a plain float must be handed out, and looked at as one.

        Raises CannotTrace when the tensor cannot be part of a Graph.
        """
        if not tensor.is_floating_point() or tensor.numel() != 1 or tensor.device.type != "cpu":
            return None
        if not self._recorder.is_recording() or not can_become_float() or not self._may_hand_out():
            return None
        value = self._recorder.value_of(tensor)
        if value.type.shape:
            own_type = TensorType((), tensor.dtype, (), tensor.device)
            value = self._recorder.emit(aten.view.default, (value, ()), {}, own_type)
        if tensor.dtype is torch.float64:
            return self._recorder.emit(aten.clone.default, (value,), {}, SCALAR)
        return self._recorder.emit(aten._to_copy.default, (value,), {"dtype": torch.float64}, SCALAR)

    def hand_out(self, real: float, value: Value, bound: float) -> float:
        """`real` as a traced number."""
        if self._class is None:
            self._class = number_class(self)
        number = self._class(real)
        self._entries[id(number)] = _Entry(number, value, bound)
        return number

    def value(self, number: object) -> Value | None:
        """The Value of a number that was handed out, whether or not it is a plain float by now."""
        entry = self._entries.get(id(number))
        return None if entry is None else entry.value

    def is_traced(self, number: object) -> bool:
        """Whether it was handed out."""
        return id(number) in self._entries

    def last_addition(self, number: object) -> tuple[Any, Any]:
        """See `trace.notes.TracedNumbers`."""
        entry = self._entries.get(id(number))
        if entry is None or entry.addition is None or entry.pinned:
            return ABSENT, ABSENT
        left, right, subtracts = entry.addition
        if not subtracts:
            return left, right
        if not self.is_traced(right):
            return left, -right
        amount = self.unary("neg", right)
        become_float(amount)  # which no code of the user's has
        return left, amount

    def added(self, number: object, before: object) -> Any:
        """See `trace.notes.TracedNumbers`."""
        old, amount = self.last_addition(number)
        return amount if old is before else ABSENT

    def forget_additions(self) -> None:
        """After the trace: what sums were made of is not held for that any more."""
        for entry in self._entries.values():
            entry.addition = None

    def may_exceed(self, number: float, limit: float) -> bool:
        """Whether another run may find a larger finite number here."""
        return self._entries[id(number)].bound > limit

    def stop(self) -> None:
        """From now on, something is there that could see numbers unnoticed."""
        self._may_hand_out = lambda: False
        self.pin_all()

    def alive(self) -> Iterator[Value]:
        """The Values of numbers that somebody holds, and that are no outcomes yet."""
        for entry in self._entries.values():
            if not entry.pinned and sys.getrefcount(entry.number) > _OWN_REFERENCES:
                yield entry.value

    def held(self) -> Iterator[tuple[float, Value, object]]:
        """The same: the numbers, their Values, and an object that stands for each."""
        for entry in self._entries.values():
            if not entry.pinned and sys.getrefcount(entry.number) > _OWN_REFERENCES:
                yield entry.number, entry.value, entry

    def describe(self, number: float) -> tuple[Value, float, bool]:
        """Of a number that was handed out: its Value, what its magnitude cannot exceed, and whether it is pinned."""
        entry = self._entries[id(number)]
        return entry.value, entry.bound, entry.pinned

    def among(self, arguments: Any) -> list[float]:
        """The traced numbers in `arguments`, through lists, tuples, dictionaries and slices, one for each place."""
        return list(_found(arguments, self._class))

    def pin(self, number: float) -> None:
        """The number itself is seen."""
        entry = self._entries.get(id(number))
        if entry is None or entry.pinned:
            return
        self._check_thread()
        entry.pinned = True
        self._recorder.look_at(OutcomeKind.NUMBER, entry.value, number_outcome(entry.number))
        become_float(number)

    def mark_pinned(self, number: float) -> None:
        """The number itself was seen, by a look that the caller has noted."""
        self._entries[id(number)].pinned = True
        become_float(number)

    def pin_all(self) -> None:
        """Any number may be seen that somebody still holds."""
        for key, entry in list(self._entries.items()):
            if sys.getrefcount(entry.number) <= _OWN_REFERENCES:
                del self._entries[key]
            elif not entry.pinned:
                self.pin(entry.number)

    def pin_unaccounted(self, held: Mapping[int, int]) -> None:
        """After the trace: pin what somebody holds who is not accounted for.

        held: references to each number, by id, other than those of this object.
        """
        for key, entry in self._entries.items():
            if not entry.pinned and sys.getrefcount(entry.number) > _OWN_REFERENCES + held.get(key, 0):
                entry.pinned = True
                self._recorder.look_at(OutcomeKind.NUMBER, entry.value, number_outcome(entry.number))

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            self._recorder.give_up("a number from a tensor is used on another thread")

    # -- what numbers ask (see NumberListener) -------------------------------------------------------------------

    def binary(self, name: str, number: float, other: Any, reflected: bool) -> Any:
        """`number op other`, or `other op number` when reflected."""
        operand = self._operand(number, other)
        if operand is None:
            return getattr(float, f"__r{name}__" if reflected else f"__{name}__")(number, other)
        left, right = (other, number) if reflected else (number, other)
        if name in CALLED:
            return self.call(_CALLS[name], (left, right))
        if name == "truediv" and (isinstance(operand, Value) or reflected):
            divisor = self._entries[id(right)].value
            self._see_truth(aten.eq.Scalar, (divisor, 0.0), float.__eq__(right, 0.0))
        real = getattr(float, f"__{name}__")(_plain(left), _plain(right))
        own = self._own(number)
        if own is None or not self._recorder.is_recording():
            return real
        op = _BINARY[name]
        args: tuple[Arg, ...] = (operand, own) if reflected else (own, operand)
        if reflected and not isinstance(operand, Value):
            # The first operand of ATen's binary ops is a tensor.
            args = (own, operand) if name in ("add", "mul") else (self._recorder.constant(operand), own)
        bound = _BOUNDS[name](self._entries[id(number)].bound, self._bound(other))
        result = self.hand_out(real, self._recorder.emit(op, args, {}, SCALAR), bound)
        if name in ("add", "sub"):
            self._entries[id(result)].addition = left, right, name == "sub"
        return result

    def call(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
        """`function(*operands)`, of floats and numbers to a float, as Python computes it."""
        traced = [operand for operand in operands if type(operand) is self._class]
        try:
            real = function(*map(_plain, operands))
        except (ArithmeticError, ValueError):
            for number in traced:  # whether it raises depends on them
                self.pin(number)
            raise
        if type(real) is not float:
            for number in traced:
                self.pin(number)
            return real
        values = [self._entries[id(each)].value if type(each) is self._class else _plain(each) for each in operands]
        if not self._recorder.is_recording() or all(self._own(number) is None for number in traced):
            return real
        return self.hand_out(real, self._recorder.emit(compute, (function, *values), {}, SCALAR), math.inf)

    def math_call(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
        """A function of `math` is called with `operands`, some of which are floats or tensors."""
        numbers = tuple([self._number_in(operand) for operand in operands])
        traced = [number for number in numbers if type(number) is self._class]
        if not traced:
            return function(*numbers)
        whole = [number for number in numbers if type(number) is int and abs(number) <= _LARGEST_EXACT]
        plain = [number for number in numbers if type(number) is float]
        if len(whole) + len(plain) + len(traced) < len(numbers):
            for number in traced:
                self.pin(number)
            return function(*numbers)
        test = _TESTS.get(function)
        if test is None:
            return self.call(function, numbers)
        (number,) = traced
        truth: bool = function(_plain(number))
        own = self._own(number)
        if own is not None and self._recorder.is_recording():
            if test is aten.ne.Tensor:
                self._see_truth(test, (own, own), truth)
            else:
                size = self._recorder.emit(aten.abs.default, (own,), {}, SCALAR)
                self._see_truth(test, (size, math.inf), truth)
        return truth

    def _number_in(self, operand: Any) -> Any:
        """The number in a tensor of one, as C code would take it from there."""
        if isinstance(operand, torch.Tensor) and operand.numel() == 1 and operand.is_floating_point():
            return operand.item()
        return operand

    def compare(self, name: str, number: float, other: Any) -> Any:
        operand = self._operand(number, other)
        if operand is None:
            return getattr(float, f"__{name}__")(number, other)
        truth = getattr(float, f"__{name}__")(number, other)
        with_number, with_tensor = _COMPARISON[name]
        own = self._own(number)
        if own is not None:
            self._see_truth(with_tensor if isinstance(operand, Value) else with_number, (own, operand), truth)
        return truth

    def unary(self, name: str, number: float) -> float:
        real: float = getattr(float, f"__{name}__")(number)
        own = self._own(number)
        if own is None or not self._recorder.is_recording():
            return real
        value = self._recorder.emit(_UNARY[name], (own,), {}, SCALAR)
        return self.hand_out(real, value, self._entries[id(number)].bound)

    def truth(self, number: float) -> bool:
        truth = float.__bool__(number)
        own = self._own(number)
        if own is not None:
            self._see_truth(aten.ne.Scalar, (own, 0.0), truth)
        return truth

    def integer(self, number: float, rounded: bool) -> int:
        """`round(number)`, or `int(number)`: another outcome only when it is another integer."""
        own = self._own(number)
        if own is None or not _is_finite(number):
            self.pin(number)
            return float.__round__(number) if rounded else float.__int__(number)
        integer = float.__round__(number) if rounded else float.__int__(number)
        if abs(integer) > _LARGEST_EXACT:
            self.pin(number)
        elif self._recorder.is_recording():
            value = self._recorder.emit(aten.round.default, (own,), {}, SCALAR) if rounded else own
            self._recorder.look_at(OutcomeKind.INTEGER, value, integer)
        return integer

    def _own(self, number: float) -> Value | None:
        """The Value of a number that is not pinned."""
        entry = self._entries.get(id(number))
        if entry is None or entry.pinned:
            return None
        self._check_thread()
        return entry.value

    def _operand(self, number: float, other: Any) -> Value | float | None:
        """The other operand of `number`, as a Value or a constant float; None when its own class has the say."""
        kind = type(other)
        if kind is self._class:
            return self._entries[id(other)].value
        if kind is float:
            return float(other)
        if kind is int or kind is bool:
            if abs(other) <= _LARGEST_EXACT:
                return float(other)
            self.pin(number)
            return math.nan  # pinned: nothing is computed from it
        if kind not in _INCOMPARABLE and not issubclass(kind, torch.Tensor):
            self.pin(number)
        return None

    def _bound(self, other: Any) -> float:
        entry = self._entries.get(id(other))
        return abs(float(other)) if entry is None else entry.bound

    def _see_truth(self, op: Any, args: tuple[Arg, ...], truth: bool) -> None:
        if self._recorder.is_recording():
            self._recorder.look_at(OutcomeKind.TRUTH, self._recorder.emit(op, args, {}, _TRUTH), truth)


def _own_references() -> int:
    """References to a number that only its entry holds, as `sys.getrefcount` counts them."""
    entry = _Entry(float("0.5"), Value(0, SCALAR), 0.5)
    return sys.getrefcount(entry.number)


_OWN_REFERENCES: Final = _own_references()


def _plain(number: Any) -> float:
    return float.__pos__(number) if isinstance(number, float) else float(number)


def _is_finite(number: float) -> bool:
    return float.__sub__(number, number) == 0.0


def _found(arguments: Any, kind: type[float] | None) -> Iterator[float]:
    if type(arguments) is kind:
        yield arguments
    elif isinstance(arguments, list | tuple):
        for item in arguments:
            yield from _found(item, kind)
    elif isinstance(arguments, dict):
        for item in arguments.values():
            yield from _found(item, kind)
    elif isinstance(arguments, slice):
        yield from _found((arguments.start, arguments.stop, arguments.step), kind)
