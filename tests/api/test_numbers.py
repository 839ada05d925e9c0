"""Numbers that Python takes out of tensors: they stay in the graph for as long as nobody sees them."""

from __future__ import annotations

import array
import copy
import datetime
import decimal
import functools
import json
import math
import pickle
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.api.stats import Counters
from tests.api.checks import counters_of

VALUES = (0.75, -1.5, 3.25, 0.0, 2.5, 1e6, -0.125)


def same(found: Any, expected: Any) -> bool:
    """Equal in type and to the last bit, through containers."""
    if type(found) is not type(expected):
        return False
    if isinstance(expected, torch.Tensor):
        return found.dtype is expected.dtype and torch.equal(found, expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, dict):
        return same(list(found.items()), list(expected.items()))
    if isinstance(expected, float):
        return struct.pack("<d", found) == struct.pack("<d", expected)
    if hasattr(expected, "__dict__") and not callable(expected):
        return same(vars(found), vars(expected))
    return bool(found == expected)


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the call returns, or the exception that it raises."""
    try:
        return function(*arguments)
    except (ArithmeticError, AttributeError, ValueError, TypeError, LookupError) as error:
        return type(error), str(error)


def run(
    function: Callable[..., Any], values: tuple[float, ...] = VALUES, dtype: torch.dtype = torch.float64
) -> Counters:
    """One call with each value, each compared with eager; the counters."""
    jitted = dsjit.jit(function)
    for value in values:
        x = torch.tensor([value, 2.0, -1.0], dtype=dtype)
        found, expected = outcome(jitted, x.clone()), outcome(function, x.clone())
        assert same(found, expected), (found, expected)
    return counters_of(jitted)


# ---------------------------------------------------------------- what stays in the graph


@dataclass
class Report:
    loss: float
    scaled: torch.Tensor


STAYING: dict[str, Callable[[Any], Any]] = {
    "returned": lambda x: x[0].item(),
    "returned with its tensor": lambda x: (x * 2, x[0].item()),
    "returned twice": lambda x: [x[0].item()] * 2,
    "in a dictionary": lambda x: {"first": x[0].item(), "last": x[2].item()},
    "in an object": lambda x: Report(x[0].item(), x * x[0].item()),
    "in a list that grows": lambda x: [value * 2 for value in (x[0].item(), x[1].item())],
    "arithmetic": lambda x: (x[0].item() + 1) * 3 - x[1].item() / 2.5 - (1 - x[0].item()),
    "divided by a constant": lambda x: x[0].item() / 3,
    "negated": lambda x: (-x[0].item(), abs(x[0].item()), +x[0].item()),
    "multiplies a tensor": lambda x: x * x[0].item(),
    "converted": lambda x: torch.tensor(x[0].item() * 0.1, dtype=torch.float32),
    "real and imaginary part": lambda x: (x[0].item().real, x[0].item().imag),
    "an instance of float": lambda x: (isinstance(x[0].item(), float), isinstance(x[0].item(), int)),
    "the sum of what was collected": lambda x: sum([x[0].item(), x[1].item()]) * 2,
    "compared with what is no number": lambda x: (x[0].item() == "a", x[0].item() is None, x[0].item() != None),  # noqa: E711
    "None as a default": lambda x: {"a": None, "b": x[0].item()}.get("b"),
}


@pytest.mark.parametrize("function", STAYING.values(), ids=STAYING.keys())
def test_one_trace_serves_every_value(function: Callable[[torch.Tensor], Any]) -> None:
    counters = run(function)
    assert (counters.traces, counters.calls_compiled, counters.calls_eager) == (1, len(VALUES) - 1, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_numbers_of_every_dtype_are_exact(dtype: torch.dtype) -> None:
    counters = run(lambda x: (x[0].item(), x[0].item() * 0.1, x * x[0].item()), dtype=dtype)
    assert counters.traces == 1


def test_tensors_of_one_element_and_any_shape_give_numbers() -> None:
    assert run(lambda x: (x[:1].item(), x[:1].view(1, 1, 1).item() * 2)).traces == 1


def test_the_number_is_what_the_tensor_held_then() -> None:
    def f(x: torch.Tensor) -> tuple[float, torch.Tensor, float]:
        before = x[0].item()
        x.add_(before)
        return before, x, x[0].item()

    assert run(f).traces == 1


# ---------------------------------------------------------------- branches


def rescaled(x: torch.Tensor) -> torch.Tensor:
    size = x.abs().max().item()
    return x / size if size > 2.25 else x


def test_a_branch_depends_on_the_truth_alone() -> None:
    counters = run(rescaled)
    assert (counters.traces, counters.calls_eager) == (2, 0)


def test_branches_on_one_number_share_what_is_before_them() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        size = x.abs().max().item()
        if x[0] > 1:
            return x * size
        if size > 2.25:
            return x / (size + 1)
        return x - size if x[0] < 0 else x + size

    jitted = dsjit.jit(f)
    for value in VALUES * 2:
        x = torch.tensor([value, 2.0, -1.0])
        assert same(jitted(x), f(x))
    found = jitted_of(jitted)
    assert found is not None
    [tree] = found.trees
    assert counters_of(jitted).traces == len(tree.leaves)


def test_a_loop_to_a_tolerance_is_a_loop_whatever_its_trip_count() -> None:
    def halve(x: torch.Tensor) -> tuple[torch.Tensor, int]:
        steps, error = 0, x.abs().max().item()
        while error > 0.5:
            x, steps = x * 0.5, steps + 1
            error = x.abs().max().item()
        return x, steps

    counters = run(halve, (2.0, 3.0, 3.5, 4.0, 2.5, 7.0, 3.75))
    assert counters.calls_eager == 0
    assert counters.traces <= 2
    assert counters.compiles <= 6


def test_the_best_of_several() -> None:
    def f(x: torch.Tensor) -> tuple[float, float, float, float]:
        best = math.inf
        for entry in x:
            if entry.item() < best:
                best = entry.item()
        return best, min(x[0].item(), x[1].item()), max(x[0].item(), 0.5), sorted([x[0].item(), 1.0])[0]

    counters = run(f, VALUES * 2)
    assert counters.calls_eager == 0
    assert counters.traces < len(VALUES)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: "yes" if x[0].item() else "no",
        lambda x: 1 if 0.5 <= x[0].item() < 3 else 2,
        lambda x: x[0].item() == 2.5,
        lambda x: x[0].item() in (2.5, 1e6),
        lambda x: not x[0].item() > x[1].item(),
        lambda x: round(x[0].item()),
        lambda x: int(x[0].item()),
        lambda x: math.floor(x[0].item()),
        lambda x: bool(x[0].item()),
        lambda x: x[0].item() > 1 << 80,
    ],
)
def test_what_python_decides_is_an_outcome(function: Callable[[torch.Tensor], Any]) -> None:
    assert run(function, VALUES + VALUES).calls_compiled >= len(VALUES)


def test_division_by_zero_is_raised() -> None:
    counters = run(lambda x: 1 / x[0].item(), (2.0, 4.0, 0.0, 8.0, 0.0))
    assert counters.calls_compiled >= 2


# ---------------------------------------------------------------- what sees the number

KIND_OF = type


class Level(IntEnum):
    HIGH = 3


def local_import(x: torch.Tensor) -> float:
    from cmath import phase  # noqa: PLC0415

    return phase(x[0].item())


SEEING: dict[str, Callable[[Any], Any]] = {
    "math": lambda x: math.exp(min(x[0].item(), 3.0)),
    "power": lambda x: abs(x[0].item()) ** 0.5 if x[0].item() else 0.0,
    "square": lambda x: x[0].item() ** 2,
    "modulo": lambda x: (x[0].item() % 0.7, x[0].item() // 0.7, divmod(x[0].item(), 0.3)),
    "format": lambda x: f"{x[0].item():.3f}",
    "str.format": lambda x: "{:.2f} {}".format(x[0].item(), x[1].item()),  # noqa: UP032
    "percent": lambda x: "%.3f" % x[0].item(),  # noqa: UP031
    "percent of a tuple": lambda x: "%.3f and %s" % (x[0].item(), x[1].item()),  # noqa: UP031
    "repr": lambda x: repr(x[0].item()),
    "str": lambda x: str(x[0].item()),
    "a key": lambda x: {x[0].item(): 1},
    "a member": lambda x: x[0].item() in {2.5, 3.25},
    "hash": lambda x: hash(x[0].item()),
    "type": lambda x: type(x[0].item()) is float,
    "name of the type": lambda x: type(x[0].item()).__name__,
    "class": lambda x: x[0].item().__class__ is float,
    "float": lambda x: float(x[0].item()) * 2,
    "complex": lambda x: complex(x[0].item(), 1.0),
    "complex on the left": lambda x: 1j * x[0].item(),
    "complex on the right": lambda x: x[0].item() * 1j,
    "decimal": lambda x: decimal.Decimal(x[0].item()),
    "compared with a decimal": lambda x: decimal.Decimal(2) > x[0].item(),
    "fraction": lambda x: Fraction(x[0].item()),
    "added to a fraction": lambda x: Fraction(1, 2) + x[0].item(),
    "json": lambda x: json.dumps({"loss": x[0].item()}),
    "struct": lambda x: struct.pack("<d", x[0].item()),
    "pickle": lambda x: pickle.loads(pickle.dumps(x[0].item())),
    "copy": lambda x: copy.deepcopy([x[0].item()]),
    "numpy scalar": lambda x: float(np.float64(x[0].item())),
    "numpy function": lambda x: float(np.sqrt(abs(x[0].item()))),
    "numpy array on the left": lambda x: (np.ones(2) * x[0].item()).tolist(),
    "numpy array": lambda x: np.array([x[0].item(), 1.0]).tolist(),
    "array": lambda x: array.array("d", [x[0].item()]).tolist(),
    "timedelta": lambda x: datetime.timedelta(seconds=1) * x[0].item(),
    "map": lambda x: list(map(math.fabs, [x[0].item()])),
    "partial": lambda x: functools.partial(math.fabs, x[0].item())(),
    "key function": lambda x: min([x[0].item(), x[1].item()], key=math.fabs),
    "sort": lambda x: sorted([x[0].item(), x[1].item()], key=math.cos),
    "reduce": lambda x: functools.reduce(math.hypot, [x[0].item(), x[1].item()]),
    "method of float": lambda x: float.__add__(x[0].item(), 1.0),
    "is_integer": lambda x: x[0].item().is_integer(),
    "hex": lambda x: x[0].item().hex(),
    "as_integer_ratio": lambda x: x[0].item().as_integer_ratio(),
    "getattr": lambda x: getattr(math, "".join(["fa", "bs"]))(x[0].item()),
    "eval": lambda x: eval("float.__neg__(n)", {"n": x[0].item()}),
    "rounded": lambda x: round(x[0].item(), 1),
    "fsum": lambda x: math.fsum([x[0].item(), 0.1, 0.2]),
    "an index": lambda x: [1, 2, 3][x[0].item()],
    "a range": lambda x: list(range(x[0].item())),
    "repeated": lambda x: "ab" * x[0].item(),
    "a slice": lambda x: slice(x[0].item(), 2),
    "method by getattr": lambda x: getattr(1.5, "__add__")(x[0].item()),  # noqa: B009
    "dictionary of a module": lambda x: vars(np)["sqrt"](abs(x[0].item())).item(),
    "type by another name": lambda x: KIND_OF(x[0].item()) is float,
    "a local class": lambda x: type("F", (float,), {})(2.0) * x[0].item(),
    "a local import": local_import,
    "the table of modules": lambda x: sys.modules["numpy"].float64(2.0).item() * x[0].item(),
    "an enumeration of integers": lambda x: x[0].item() * Level.HIGH + Level.HIGH * x[0].item(),
    "a complex item": lambda x: torch.complex(x, x)[0].item() * x[0].item(),
    "power that is complex": lambda x: pow(-8, 1 / 3) * x[0].item(),
    "large integers": lambda x: (x[0].item() + (1 << 60), x[0].item() < 1 << 2000),
    "memory": lambda x: bytes(memoryview(array.array("d", [0.0])).cast("B")) and math.copysign(1.0, x[0].item()),
    "an attribute that says so": lambda x: x[0].item().missing,
}


@pytest.mark.parametrize("function", SEEING.values(), ids=SEEING.keys())
def test_whoever_sees_the_number_sees_the_right_one(function: Callable[[torch.Tensor], Any]) -> None:
    run(function, (*VALUES, *VALUES[:3]))


def test_closures_and_generators_keep_the_right_number() -> None:
    def f(x: torch.Tensor) -> float:
        number = x[0].item()

        def later() -> float:
            return number * 2

        return later() + next(each * number for each in [3.0])

    run(f)


SCALE = np.float64(2.0)


def test_foreign_numbers_are_noticed_wherever_they_come_from() -> None:
    class Holder:
        scale = np.float32(3.0)

        def __init__(self) -> None:
            self.offset = decimal.Decimal(1)
            self.table = {"factor": np.float64(0.5)}

    holder = Holder()
    run(lambda x: SCALE * x[0].item())
    run(lambda x: Holder.scale * x[0].item())
    run(lambda x: holder.scale * x[0].item())
    run(lambda x: holder.table["factor"] * x[0].item())
    run(lambda x: holder.offset > x[0].item())
    run(lambda x, scale=SCALE: scale * x[0].item())


# ---------------------------------------------------------------- after the call


def test_nothing_that_the_call_leaves_behind_is_special() -> None:
    kept: list[Any] = []

    def f(x: torch.Tensor) -> dict[str, Any]:
        number = x[0].item()
        kept.append(number)
        return {"number": number, "doubled": number * 2, "nested": [(number,)]}

    jitted = dsjit.jit(f)
    for value in (0.5, 2.0, 4.0):
        result = jitted(torch.tensor([value, 1.0]))
        assert same(result, {"number": value, "doubled": value * 2, "nested": [(value,)]})
    assert same(kept, [0.5, 2.0, 4.0])


def test_exceptions_carry_plain_numbers() -> None:
    def f(x: torch.Tensor) -> None:
        raise ValueError(x[0].item())

    with pytest.raises(ValueError) as caught:
        dsjit.jit(f)(torch.tensor([0.5, 1.0]))
    assert type(caught.value.args[0]) is float and caught.value.args == (0.5,)


def test_what_somebody_else_keeps_is_an_outcome() -> None:
    class Meter:
        last = 0.0

    meter = Meter()

    def f(x: torch.Tensor) -> torch.Tensor:
        meter.last = x[0].item()
        return x * 2

    jitted = dsjit.jit(f)
    for value in (0.5, 0.5, 0.5, 2.0, 0.5):
        jitted(torch.tensor([value, 1.0]))
        assert meter.last == value


def test_a_returned_function_remembers_its_own_call() -> None:
    def f(x: torch.Tensor) -> Callable[[], float]:
        number = x[0].item()
        return lambda: number

    jitted = dsjit.jit(f)
    for value in VALUES:
        assert jitted(torch.tensor([value, 1.0], dtype=torch.float64))() == value
