"""What could see a number unnoticed: values, C functions and code that are harmful, and those that are not."""

from __future__ import annotations

import array
import collections
import ctypes
import datetime
import decimal
import enum
import functools
import json
import math
import operator
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from dsjit.trace.numbers.harmless_calls import is_harmless_call
from dsjit.trace.numbers.leaks import harmful_code, harmful_value

MODULE_SCALE = np.float64(2.0)
kind_of = type


@dataclass
class Plain:
    x: float


class Level(enum.Enum):
    LOW = 1
    COMPLEX = 1j


class Number(float):
    pass


class Record(ctypes.Structure):
    _fields_ = (("x", ctypes.c_double),)


def _name(value: Any) -> str:
    """An id that is the same in every process, which the address in a `repr` is not."""
    return f"{type(value).__name__}-{getattr(value, '__name__', '')}"


@pytest.mark.parametrize(
    "value",
    [
        1, 2.5, "text", None, [1], {"a": 1}, len, print, torch.relu, torch.nn.Linear, torch.float32, torch.ones(2),
        torch.nn.Linear(2, 2), Plain, Plain(1.0), Level.LOW, ValueError, list, dict, collections.namedtuple, math,
        collections.Counter(), functools.lru_cache(lambda: 1), functools.partial(Plain), torch.Size([1]), lambda: 1,
    ],
    ids=_name,
)  # fmt: skip
def test_ordinary_values_are_harmless(value: Any) -> None:
    assert harmful_value(value) is None


@pytest.mark.parametrize(
    "value",
    [
        1j, complex, type, map, filter, np.float64(1.0), np.ones(2), np.float64, np.sqrt, decimal.Decimal,
        decimal.Decimal(1), datetime.timedelta, datetime.timedelta(1), array.array("d"), array.array, Level.COMPLEX,
        Number, Number(1.0), Record, Record(), ctypes.c_double, operator.itemgetter, operator.mul, sys.modules, eval,
        functools.partial(math.sqrt), functools.partial(complex), float.__add__, memoryview, bytearray,
        vars(json.encoder)["c_make_encoder"],
    ],
    ids=_name,
)  # fmt: skip
def test_what_reads_floats_is_harmful(value: Any) -> None:
    assert harmful_value(value) is not None


def by_operator(x: Any, n: int) -> Any:
    return x + n - 2 * n, x % 3, 5 % n, x**2, 2**n


def by_name(x: Any) -> Any:
    return getattr(x, "shape", None), isinstance(x, float), len(x), min(x, 1.0), x.item(), torch.relu(x)


def complex_constant(x: Any) -> Any:
    return x * 2j


def formatting(x: Any, text: str) -> Any:
    return text % x


def power(x: Any, n: float) -> Any:
    return x**n


def type_of(x: Any) -> Any:
    return type(x)


def type_by_another_name(x: Any) -> Any:
    return kind_of(x)


def dunder(x: Any) -> Any:
    return float.__add__(x, 1.0)


def any_attribute(x: Any) -> Any:
    return getattr(torch, "".join(x))


def foreign_global(x: Any) -> Any:
    return MODULE_SCALE * x


def foreign_entry(x: Any) -> Any:
    return np.float64(x)


def local_class(x: Any) -> Any:
    class Local(float):
        pass

    return Local(2.0) * x


def local_import(x: Any) -> Any:
    from decimal import Decimal  # noqa: PLC0415

    return Decimal(x)


@pytest.mark.parametrize("function", [by_operator, by_name])
def test_ordinary_code_is_harmless(function: Callable[..., Any]) -> None:
    assert harmful_code(function.__code__, function.__globals__) is None


@pytest.mark.parametrize(
    ("function", "lasting"),
    [
        (complex_constant, True), (formatting, False), (power, True), (type_of, False), (type_by_another_name, True),
        (dunder, False), (any_attribute, True), (foreign_global, True), (foreign_entry, True), (local_class, True),
        (local_import, True),
    ],
)  # fmt: skip
def test_code_that_sees_numbers_or_finds_what_does_is_harmful(function: Callable[..., Any], lasting: bool) -> None:
    harm = harmful_code(function.__code__, function.__globals__)
    assert harm is not None
    assert harm.lasting is lasting


def test_a_generator_that_sees_numbers_may_go_on_later() -> None:
    def generator(x: Any) -> Any:
        yield type(x)

    harm = harmful_code(generator.__code__, globals())
    assert harm is not None and harm.lasting


def with_key(x: Any) -> Any:
    return min(x, key=math.fabs)


@pytest.mark.parametrize("function", [len, min, [].append, {}.get, torch.relu, torch.ones(1).add, "".join, getattr])
def test_calls_that_show_no_number(function: Any) -> None:
    assert is_harmless_call(function, by_name.__code__)


@pytest.mark.parametrize("function", [math.sqrt, [].sort, array.array("d").append, print, pow, struct.pack])
def test_calls_that_may_show_a_number(function: Any) -> None:
    assert not is_harmless_call(function, by_name.__code__)


def test_ordering_shows_numbers_to_a_key_function() -> None:
    assert is_harmless_call(sorted, by_name.__code__)
    assert not is_harmless_call(sorted, with_key.__code__)
