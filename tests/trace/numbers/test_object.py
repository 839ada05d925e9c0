"""Traced numbers are floats in all that shows, and become plain floats where they stand."""

from __future__ import annotations

import gc
import math
import operator
import struct
import sys
from typing import Any

import pytest

from dsjit.trace.numbers.object import become_plain, can_become_plain, number_class
from dsjit.trace.numbers.tables import plain


class Listener:
    """Does what floats do, and writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def binary(self, name: str, number: float, other: Any, reflected: bool) -> Any:
        self.asked.append(("r" if reflected else "") + name)
        left, right = (other, plain(number)) if reflected else (plain(number), other)
        if isinstance(other, list):
            return NotImplemented
        return getattr(operator, f"__{name}__")(left, right)

    def compare(self, name: str, number: float, other: Any) -> Any:
        self.asked.append(name)
        return getattr(operator, name)(plain(number), other)

    def unary(self, name: str, number: float) -> float:
        self.asked.append(name)
        result: float = getattr(type(plain(number)), f"__{name}__")(plain(number))
        return result

    def truth(self, number: float) -> bool:
        self.asked.append("truth")
        return bool(plain(number))

    def converted(self, number: float, kind: type[float]) -> float:
        self.asked.append(kind.__name__)
        become_plain(number)
        return kind(number)

    def rounded(self, number: float) -> float:
        self.asked.append("round")
        return round(plain(number))

    def text(self, number: float, method: str, arguments: tuple[Any, ...]) -> str:
        self.pin(number)
        text: str = getattr(plain(number), method)(*arguments)
        return text

    def pin(self, number: float) -> None:
        self.asked.append("pin")
        become_plain(number)


def made(value: float) -> tuple[Any, Listener]:
    listener = Listener()
    return number_class(listener, type(value))(value), listener


def test_this_interpreter_lays_floats_out_as_is_thought() -> None:
    assert can_become_plain()


@pytest.mark.parametrize(
    ("use", "asked"),
    [
        (lambda n: n + 1, ["add"]),
        (lambda n: 1 + n, ["radd"]),
        (lambda n: 1.0 / n, ["rtruediv"]),
        (lambda n: n < 3, ["lt"]),
        (lambda n: 3.0 < n, ["gt"]),  # noqa: SIM300
        (lambda n: n in [1.0], ["eq"]),
        (lambda n: bool(n), ["truth"]),
        (lambda n: not n, ["truth"]),
        (lambda n: int(n), ["int"]),
        (lambda n: round(n), ["round"]),
        (lambda n: -n, ["neg"]),
        (lambda n: abs(n), ["abs"]),
        (lambda n: min(n, 1.0), ["gt"]),
        (lambda n: n**2, ["pow"]),
        (lambda n: 2**n, ["rpow"]),
        (lambda n: n // 2, ["floordiv"]),
        (lambda n: n % 2, ["mod"]),
        (lambda n: f"{n:.2f}", ["pin"]),
        (lambda n: str(n), ["pin"]),
        (lambda n: hash(n), ["pin"]),
        (lambda n: float(n), ["float"]),
        (lambda n: complex(n), ["float"]),
        (lambda n: math.floor(n), ["pin"]),
        (lambda n: n.is_integer(), ["pin"]),
        (lambda n: n.__reduce_ex__(2), ["pin"]),
        (lambda n: n.__class__ is float, []),
        (lambda n: isinstance(n, float), []),
        (lambda n: n is None, []),
        (lambda n: (n.real, n.imag, n.conjugate()), []),
    ],
)
def test_every_method_asks_and_gives_what_a_float_gives(use: Any, asked: list[str]) -> None:
    number, listener = made(2.5)
    assert use(number) == use(2.5)
    assert listener.asked[: len(asked)] == asked
    assert not asked or listener.asked


def test_errors_name_a_float() -> None:
    number, _ = made(2.5)
    for use in (lambda n: [1][n], lambda n: range(n), lambda n: "a" + n, lambda n: n.missing, lambda n: len(n)):
        with pytest.raises((TypeError, AttributeError)) as mine:
            use(number)
        with pytest.raises((TypeError, AttributeError)) as theirs:
            use(2.5)
        assert str(mine.value) == str(theirs.value)


def test_a_number_becomes_a_plain_float_wherever_it_was_put() -> None:
    number, _ = made(2.5)
    holder = {"list": [number], "tuple": (number,)}
    become_plain(number)
    assert type(number) is type(holder["list"][0]) is type(holder["tuple"][0]) is float
    assert number == 2.5 and struct.pack("<d", number) == struct.pack("<d", 2.5)
    become_plain(number)


def test_memory_and_classes_are_given_back() -> None:
    kind = number_class(Listener(), float)
    references = sys.getrefcount(kind)
    numbers = [kind(n / 2) for n in range(10_000)]
    assert not any(map(gc.is_tracked, numbers))
    for number in numbers:
        become_plain(number)
    assert [type(number) for number in numbers] == [float] * len(numbers)
    del numbers, number
    assert [n / 4 for n in range(20_000)][-1] == 19_999 / 4
    assert sys.getrefcount(kind) == references


@pytest.mark.parametrize(
    ("use", "asked"),
    [
        (lambda n: n + 1, ["add"]),
        (lambda n: 0.5 * n, ["rmul"]),
        (lambda n: n & 2, ["and"]),
        (lambda n: 1 << n, ["rlshift"]),
        (lambda n: ~n, ["invert"]),
        (lambda n: 2.5 < n, ["gt"]),  # noqa: SIM300
        (lambda n: n in (1, 3), ["eq"]),
        (lambda n: [10, 20, 30, 40][n], ["pin"]),
        (lambda n: "abcd"[1:n], ["pin"]),
        (lambda n: list(range(n)), ["pin"]),
        (lambda n: [0] * n, ["rmul", "pin"]),
        (lambda n: "%d" % n, ["int"]),  # noqa: UP031
        (lambda n: "a".ljust(n), ["pin"]),
        (lambda n: list(enumerate("ab", n)), ["pin"]),
        (lambda n: {3: "three"}[n], ["pin"]),
        (lambda n: math.sqrt(n), ["float"]),
        (lambda n: n.bit_length(), ["pin"]),
        (lambda n: isinstance(n, int), []),
        (lambda n: (n.real, n.imag), []),
    ],
)
def test_ints_are_asked_by_whatever_reads_ints(use: Any, asked: list[str]) -> None:
    number, listener = made(3)
    assert use(number) == use(3)
    assert listener.asked[: len(asked)] == asked


def test_an_int_of_its_own_becomes_plain_and_does_not_change_small_ints() -> None:
    number, _ = made(7)
    become_plain(number)
    assert type(number) is int and number == 7 and number is not int("7")
    assert int("7") + 1 == 8
