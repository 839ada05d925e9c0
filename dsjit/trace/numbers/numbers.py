"""Numbers that were taken out of tensors, and stay in the graph.

`t.item()` gives Python a float or an int. When a program had to see that number again on each run, it would be a new
outcome on each run. So the traced call gets a *traced number*: one that is what `t.item()` is, and that records what is
done with it. Arithmetic becomes nodes on float64 and int64 tensors of no dimension, which compute what Python computed
(`ops.python_numbers`, where no op of ATen has Python's bits; an int that int64 does not hold makes the program
raise). A comparison is a look at a truth, so that the same way is taken whatever the numbers are, as long as the
truths are the same.

Everything else that sees the number *pins* it: then its value is an outcome, as if it had been looked at there and
then, and the object becomes a plain number where it stands. What sees numbers unnoticed is found by
`trace.numbers.leaks`. At the end of the trace every traced number becomes a plain one.
"""

from __future__ import annotations

import math
import operator
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from dsjit.ir.graph import Arg, TensorType, Value
from dsjit.ops.python_numbers import compute, is_int64
from dsjit.trace.effects.text import Formatted, Marks
from dsjit.trace.looks.outcome import Outcome, OutcomeKind
from dsjit.trace.numbers.conversion import Conversions
from dsjit.trace.numbers.entries import OWN_REFERENCES, Entry
from dsjit.trace.numbers.math import MathCalls
from dsjit.trace.numbers.object import CALLED, become, become_plain, can_become_plain, number_class, revealed_class
from dsjit.trace.numbers.origins import Origins
from dsjit.trace.numbers.tables import (
    BINARY,
    BOUNDS,
    CALLS,
    COMPARISON,
    INCOMPARABLE,
    LARGEST_EXACT,
    SCALAR,
    TESTS,
    TRUTH,
    TYPES,
    UNARY,
    WHOLE_BOUND,
    NumberRecorder,
    found_among,
    is_finite,
    number_outcome,
    plain,
)
from dsjit.trace.reads.paths import ABSENT

__all__ = ["Numbers"]

aten = torch.ops.aten


class Numbers:
    """The traced numbers of one trace; a context around it.

    may_hand_out: whether nothing that could see a number unnoticed is known to the traced code.
    is_told: whether text that a method of a number makes goes nowhere but to be told (see `trace.effects.text`).
    """

    def __init__(self, recorder: NumberRecorder, may_hand_out: Callable[[], bool]) -> None:
        self._recorder = recorder
        self._may_hand_out = may_hand_out
        self._thread = threading.get_ident()
        self._entries: dict[int, Entry] = {}
        self._classes: dict[type, type[float]] = {}
        self._kinds: frozenset[type] = frozenset()
        self.origins = Origins()
        self.marks = Marks()
        self.is_told: Callable[[str], bool] = lambda method: False
        self.math = MathCalls(self)
        self.conversions = Conversions()

    def __enter__(self) -> Numbers:
        return self

    def __exit__(self, *error: object) -> None:
        self.math.withdraw()
        self.marks.forget()
        self.conversions.stop()
        for entry in self._entries.values():
            become_plain(entry.number)

    # -- numbers come and go -------------------------------------------------------------------------------------

    def convert(self, value: Value, kind: type[float]) -> Value:
        """The Value of `kind(number)`, of a number with this Value."""
        if value.type == TYPES[kind]:
            return value
        return self._emit(compute, (kind, kind, value), {}, TYPES[kind])

    def hand_out(self, real: float, value: Value, bound: float) -> float:
        """`real` as a traced number. bound: see `Entry`; not needed for ints."""
        kind = type(real)
        if kind not in self._classes:
            self._recorder.watch_calls()
            self._classes[kind] = number_class(self, kind)
            self._kinds |= {self._classes[kind]}
            if kind is int:
                self.conversions.revealed = revealed_class(self._classes[kind])
                self._kinds |= {self.conversions.revealed}
        number = self._classes[kind](real)
        self._entries[id(number)] = Entry(number, value, WHOLE_BOUND if kind is int else bound)
        return number

    def adopt(self, number: float, value: Value) -> None:
        """Another trace in lockstep with this one handed out `number`, which has this Value here."""
        self._entries[id(number)] = Entry(number, value, math.inf)

    def of_constant(self, number: float) -> float:
        """A number of Python's as a traced one: for other rounds of a loop it is another."""
        kind = type(number)
        value = self._emit(compute, (kind, operator.pos, number), {}, TYPES[kind])
        return self.hand_out(number, value, math.inf)

    def of_caller(self, number: float, tensor: torch.Tensor, settle: Callable[[], None]) -> float:
        """A number of the caller's as a traced one. tensor: the input that holds it. settle: see `Origins.plant`."""
        value = self._recorder.value_of(tensor)
        self.origins.plant(value, settle)
        return self.hand_out(number, value, math.inf)

    def may_trace(self, whole: bool = True) -> bool:
        """Whether traced numbers may be given to the code that is running. whole: ints."""
        known = self._recorder.is_recording() and can_become_plain() and (not whole or self.conversions.can_wait())
        return known and self._may_hand_out()

    def hand_out_converted(self, real: float, value: Value, bound: float) -> float:
        """The same as the result of `float(...)` or `int(...)`, which refuse any other object: a plain number, which
        becomes a traced one as soon as the frame that called goes on. The caller has asked `conversions`."""
        number = self.hand_out(real, value, bound)
        self.conversions.hand_over(number, self._is_open(self._entries[id(number)]))
        return number

    def value(self, number: object) -> Value | None:
        """The Value of a number that was handed out, whether or not it is a plain float by now."""
        entry = self._entries.get(id(number))
        return None if entry is None else entry.value

    def is_traced(self, number: object) -> bool:
        """Whether it was handed out."""
        return id(number) in self._entries

    def last_addition(self, number: object) -> tuple[Any, Any]:
        """See `trace.reads.notes.TracedNumbers`."""
        entry = self._entries.get(id(number))
        if entry is None or entry.addition is None or entry.pinned:
            return ABSENT, ABSENT
        left, right, subtracts = entry.addition
        if not subtracts:
            return left, right
        if not self.is_traced(right):
            return left, -right
        amount = self.unary("neg", right)
        become_plain(amount)  # which no code of the user's has
        return left, amount

    def added(self, number: object, before: object) -> Any:
        """See `trace.reads.notes.TracedNumbers`."""
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
            if not entry.pinned and sys.getrefcount(entry.number) > OWN_REFERENCES:
                yield entry.value

    def held(self) -> Iterator[tuple[float, Value, object]]:
        """The same: the numbers, their Values, and an object that stands for each; not what only sums know of."""
        parts = Counter(id(part) for entry in self._entries.values() for part in (entry.addition or ())[:2])
        for key, entry in self._entries.items():
            if not entry.pinned and sys.getrefcount(entry.number) > OWN_REFERENCES + parts[key]:
                yield entry.number, entry.value, entry

    def describe(self, number: float) -> tuple[Value, float, bool]:
        """Of a number that was handed out: its Value, what its magnitude cannot exceed, and whether it is pinned."""
        entry = self._entries[id(number)]
        return entry.value, entry.bound, entry.pinned

    def reveal(self, frame: FrameType) -> None:
        """`frame` is about to call a function of torch (see `trace.numbers.conversion`)."""
        if int in self._classes:
            for entry in self._entries.values():
                if type(entry.number) is self._classes[int]:
                    self.conversions.reveal(frame, entry.number, self._is_open(entry))

    def _is_open(self, entry: Entry) -> Callable[[], bool]:
        return lambda: not entry.pinned

    @contextmanager
    def as_plain(self, numbers: Iterable[float]) -> Iterator[None]:
        """Torch is called with these traced numbers, which are plain ones for it."""
        kinds = [(number, type(number)) for number in numbers]
        for number, _ in kinds:
            become_plain(number)
        try:
            yield
        finally:
            for number, kind in kinds:
                if not self._entries[id(number)].pinned:
                    become(number, kind)

    def among(self, arguments: Any) -> list[float]:
        """The traced numbers in `arguments`, through lists, tuples, dictionaries and slices, one for each place."""
        return list(found_among(arguments, self._kinds))

    def pin(self, number: float) -> None:
        """The number itself is seen."""
        entry = self._entries.get(id(number))
        if entry is None or entry.pinned:
            return
        self._check_thread()
        entry.pinned = True
        self._see_number(entry)
        become_plain(number)

    def settle(self, number: float) -> bool:
        """The number itself is seen: whether it is known by the guard from now on, so that it is no outcome."""
        return self.origins.settle(self._entries[id(number)].value)

    def mark_pinned(self, number: float) -> None:
        """The number itself was seen, by a look that the caller has noted."""
        self._entries[id(number)].pinned = True
        become_plain(number)

    def pin_all(self) -> None:
        """Any number may be seen that somebody still holds."""
        for key, entry in list(self._entries.items()):
            if sys.getrefcount(entry.number) <= OWN_REFERENCES:
                del self._entries[key]
            elif not entry.pinned:
                self.pin(entry.number)

    def pin_unaccounted(self, held: Mapping[int, int]) -> None:
        """After the trace: pin what somebody holds who is not accounted for.

        held: references to each number, by id, other than those of this object.
        """
        for key, entry in self._entries.items():
            if not entry.pinned and sys.getrefcount(entry.number) > OWN_REFERENCES + held.get(key, 0):
                entry.pinned = True
                self._see_number(entry)

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            self._recorder.give_up("a number from a tensor is used on another thread")

    # -- what numbers ask (see NumberListener) -------------------------------------------------------------------

    def binary(self, name: str, number: float, other: Any, reflected: bool) -> Any:
        """`number op other`, or `other op number` when reflected."""
        operand = self._operand(number, other)
        kind = int if isinstance(number, int) else float
        if operand is None:
            return getattr(kind, f"__r{name}__" if reflected else f"__{name}__")(number, other)
        left, right = (other, number) if reflected else (number, other)
        whole = kind is int and isinstance(other, int)
        if whole or name in CALLED:
            result = self.call(CALLS[name], (left, right))
        elif kind is int and name not in BINARY:
            return getattr(kind, f"__r{name}__" if reflected else f"__{name}__")(number, other)
        else:
            result = self._float_binary(name, left, right)
        entry = self._entries.get(id(result))
        if entry is not None and name in ("add", "sub"):
            entry.addition = left, right, name == "sub"
        return result

    def _float_binary(self, name: str, left: Any, right: Any) -> float:
        """Arithmetic of floats, one of which, at least, is traced; the other may be an int."""
        if name == "truediv" and self.is_traced(right):
            self._see_truth(aten.eq.Scalar, (self._entries[id(right)].value, 0), plain(right) == 0)
        real: float = getattr(operator, name)(plain(left), plain(right))
        if not self._recorder.is_recording() or not self._has_open(left, right):
            return real
        a, b = self._float_value(left), self._float_value(right)
        if not isinstance(a, Value):
            # The first operand of ATen's binary ops is a tensor.
            a, b = (b, a) if name in ("add", "mul") and isinstance(b, Value) else (self._constant(a), b)
        bound = BOUNDS[name](self._bound(left), self._bound(right))
        return self.hand_out(real, self._emit(BINARY[name], (a, b), {}, SCALAR), bound)

    def _has_open(self, *numbers: object) -> bool:
        """Whether one of these numbers is traced, and not pinned."""
        return any(self._own(number) is not None for number in numbers)

    def _float_value(self, number: float) -> Value | float:
        """A number as a float: its Value, or the constant."""
        entry = self._entries.get(id(number))
        if entry is None:
            return float(number)
        if entry.value.type.dtype is torch.float64:
            return entry.value
        return self._emit(aten._to_copy.default, (entry.value,), {"dtype": torch.float64}, SCALAR)

    def call(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
        """`function(*operands)`, of numbers to a number, as Python computes it."""
        traced = [operand for operand in operands if type(operand) in self._kinds]
        try:
            real = function(*map(plain, operands))
        except (ArithmeticError, ValueError):
            for number in traced:  # whether it raises depends on them
                self.pin(number)
            raise
        kind = type(real)
        if kind not in (float, int) or (kind is int and not is_int64(real)):
            for number in traced:
                self.pin(number)
            return real
        if not self._recorder.is_recording() or not self._has_open(*traced):
            return real
        return self.hand_out(real, self._computed(kind, function, operands), math.inf)

    def _computed(self, kind: type, function: Callable[..., Any], operands: tuple[Any, ...]) -> Value:
        """The Value of `function(*operands)`, which is of this kind."""
        values = [self._entries[id(each)].value if type(each) in self._kinds else plain(each) for each in operands]
        return self._emit(compute, (kind, function, *values), {}, TYPES[kind])

    def math_call(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
        """A function of `math` is called with `operands`, some of which are numbers or tensors."""
        numbers = tuple([self._number_in(operand) for operand in operands])
        traced = [number for number in numbers if type(number) in self._kinds]
        if not traced:
            return function(*numbers)
        whole = [number for number in numbers if type(number) is int and abs(number) <= LARGEST_EXACT]
        floats = [number for number in numbers if type(number) is float]
        if len(whole) + len(floats) + len(traced) < len(numbers):
            for number in traced:
                self.pin(number)
            return function(*numbers)
        test = TESTS.get(function)
        if test is None:
            return self.call(function, numbers)
        (number,) = traced
        truth: bool = function(plain(number))
        own = self._own(number)
        if own is not None and self._recorder.is_recording() and isinstance(number, float):
            if test is aten.ne.Tensor:
                self._see_truth(test, (own, own), truth)
            else:
                size = self._emit(aten.abs.default, (own,), {}, SCALAR)
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
            return getattr(int if isinstance(number, int) else float, f"__{name}__")(number, other)
        truth = getattr(operator, name)(plain(number), plain(other))
        own = self._own(number)
        if own is None or not self._recorder.is_recording():
            return truth
        is_value = isinstance(operand, Value)
        of_a_kind = isinstance(number, int) is isinstance(other, int)
        if of_a_kind or (isinstance(number, float) and not is_value):
            with_number, with_tensor = COMPARISON[name]
            self._see_truth(with_tensor if is_value else with_number, (own, operand), truth)
        else:  # Python compares ints and floats exactly
            value = self._computed(bool, getattr(operator, name), (number, other))
            self._look_at(OutcomeKind.TRUTH, value, truth)
        return truth

    def unary(self, name: str, number: float) -> float:
        if isinstance(number, int):
            whole: int = self.call(CALLS[name], (number,))
            return whole
        real: float = getattr(float, f"__{name}__")(number)
        own = self._own(number)
        if own is None or not self._recorder.is_recording():
            return real
        value = self._emit(UNARY[name], (own,), {}, SCALAR)
        return self.hand_out(real, value, self._entries[id(number)].bound)

    def truth(self, number: float) -> bool:
        truth = bool(plain(number))
        own = self._own(number)
        if own is not None:
            self._see_truth(aten.ne.Scalar, (own, 0), truth)
        return truth

    def converted(self, number: float, kind: type[float]) -> float:
        """`int(number)` or `float(number)`, or what goes by such a call."""
        own = self._own(number)
        real = kind(plain(number)) if kind is float or is_finite(number) else None
        fits = real is not None and (kind is float or is_int64(int(real)))
        if own is None or real is None or not fits or not self._recorder.is_recording():
            self.pin(number)
            return kind(plain(number))
        self._recorder.pause()
        try:
            is_handed_over = self.conversions.begin(kind)
        finally:
            self._recorder.resume()
        if is_handed_over:
            return self.hand_out_converted(real, self.convert(own, kind), self._bound(number))
        if kind is float or isinstance(number, int):
            self.pin(number)
            return real
        self._look_at(OutcomeKind.INTEGER, own, real)
        return real

    def text(self, number: float, method: str, arguments: tuple[Any, ...]) -> str:
        """`format(number, ...)`, `str(number)` or `repr(number)`."""
        text: str = getattr(plain(number), method)(*arguments)
        if self._own(number) is not None and self._recorder.is_recording() and self.is_told(method):
            return self.marks.mark(Formatted(number, method, arguments))
        self.pin(number)
        return text

    def rounded(self, number: float) -> float:
        """`round(number)`."""
        return number if isinstance(number, int) else self.call(round, (number,))

    def _own(self, number: object) -> Value | None:
        """The Value of a number that is not pinned."""
        entry = self._entries.get(id(number))
        if entry is None or entry.pinned:
            return None
        self._check_thread()
        return entry.value

    def _operand(self, number: float, other: Any) -> Value | float | None:
        """The other operand of `number`, as a Value or a constant; None when its own class has the say."""
        kind = type(other)
        if kind in self._kinds:
            return self._entries[id(other)].value
        if kind is float:
            return float(other)
        if kind is int or kind is bool:
            if abs(other) <= LARGEST_EXACT:
                return float(other) if isinstance(number, float) else int(other)
            self.pin(number)
            return math.nan  # pinned: nothing is computed from it
        if kind not in INCOMPARABLE and not issubclass(kind, torch.Tensor):
            self.pin(number)
        return None

    def _bound(self, other: Any) -> float:
        entry = self._entries.get(id(other))
        return abs(float(other)) if entry is None else entry.bound

    def _see_truth(self, op: Any, args: tuple[Arg, ...], truth: bool) -> None:
        if self._recorder.is_recording():
            self._look_at(OutcomeKind.TRUTH, self._emit(op, args, {}, TRUTH), truth)

    # -- what is recorded ----------------------------------------------------------------------------------------

    def _emit(self, op: Any, args: tuple[Arg, ...], kwargs: Mapping[str, Arg], type_: TensorType) -> Value:
        value = self._recorder.emit(op, args, kwargs, type_)
        self.origins.note(value, args)
        return value

    def _constant(self, number: float) -> Value:
        value = self._recorder.constant(number)
        self.origins.note_constant(value)
        return value

    def _look_at(self, kind: OutcomeKind, value: Value, outcome: Outcome) -> None:
        if not self.origins.is_settled(value):
            self._recorder.look_at(kind, value, outcome)

    def _see_number(self, entry: Entry) -> None:
        if not self.origins.settle(entry.value):
            self._recorder.look_at(OutcomeKind.NUMBER, entry.value, number_outcome(entry.number))
