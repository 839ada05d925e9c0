"""Ints that were taken out of tensors: eager's values, types and bits, and no new trace for another number."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import dsjit
from tests.api.checks import assert_same, counters_of

NUMBERS = (3, 7, -2, 40, 5)
LARGE = (16777217, -16777219, (1 << 53) + 1, (1 << 62) + 3, 5)
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Function = Callable[[torch.Tensor, int], Any]


def check(function: Function, x: torch.Tensor, numbers: tuple[int, ...], traces: int = 1, eager: int = 0) -> None:
    """Every call gives what eager gives. traces: that all calls need together. eager: calls without a program."""

    def f(x: torch.Tensor, t: torch.Tensor) -> Any:
        return function(x, t.item())

    def g(x: torch.Tensor, t: torch.Tensor) -> Any:
        return function(x, int(t))

    for variant in (f, g):
        jitted = dsjit.jit(variant)
        for number in numbers:
            t = torch.tensor(number)
            assert_same(jitted(x.clone(), t), variant(x.clone(), t))
        assert (counters_of(jitted).traces, counters_of(jitted).calls_eager) == (traces, eager)


def assigned(x: torch.Tensor, n: int) -> torch.Tensor:
    x[0] = n
    return x


def added_in_place(x: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    y = x
    y += n
    return x, y


WITH_TENSORS: dict[str, Function] = {
    "x + n": lambda x, n: x + n,
    "n + x": lambda x, n: n + x,
    "x - n": lambda x, n: x - n,
    "n - x": lambda x, n: n - x,
    "x * n": lambda x, n: x * n,
    "x += n": added_in_place,
    "torch.add": lambda x, n: torch.add(x, n),
    "x.sub_": lambda x, n: x.sub_(n),
    "x < n": lambda x, n: x < n,
    "n >= x": lambda x, n: n >= x,
    "x[0] = n": assigned,
}
WITH_FLOATS: dict[str, Function] = {
    "x / n": lambda x, n: x / n,
    "n / x": lambda x, n: n / x,
    "alpha": lambda x, n: x.add(x, alpha=n),
    "torch.tensor": lambda x, n: x + torch.tensor(n),
    "fill_": lambda x, n: x.clone().fill_(n),
    "masked_fill": lambda x, n: x.masked_fill(x > 1, n),
}


@pytest.mark.parametrize("dtype", (*FLOATING, torch.int64))
@pytest.mark.parametrize("name", [name for name in WITH_TENSORS if name != "x[0] = n"])
def test_an_operand_of_tensors_rounds_as_a_python_int_does(name: str, dtype: torch.dtype) -> None:
    check(WITH_TENSORS[name], torch.arange(5).to(dtype), NUMBERS)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("name", WITH_FLOATS)
def test_an_argument_of_a_function_of_floats(name: str, dtype: torch.dtype) -> None:
    check(WITH_FLOATS[name], torch.arange(1, 6).to(dtype), NUMBERS)


def test_an_int_that_may_not_fit_float16_is_an_outcome() -> None:
    check(assigned, torch.arange(5).half(), NUMBERS, traces=len(NUMBERS))


@pytest.mark.parametrize("name", ["x + n", "x * n", "x += n", "x[0] = n", "x < n"])
def test_large_ints_are_rounded_once(name: str) -> None:
    check(WITH_TENSORS[name], torch.arange(5.0), LARGE)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, n: n + 1,
        lambda x, n: (n - 3) * 2,
        lambda x, n: 10 - n,
        lambda x, n: n / 4,
        lambda x, n: n // 4 + n % 4,
        lambda x, n: n**2,
        lambda x, n: -n,
        lambda x, n: ~n & 12 | 1 ^ n,
        lambda x, n: abs(n) << 2,
        lambda x, n: 0.5 * n,
        lambda x, n: n + 0.25,
        lambda x, n: n * x.sum().item(),
        lambda x, n: (float(n), int(n), round(n)),
        lambda x, n: int(n * 0.7),
        lambda x, n: round(n / 3),
        lambda x, n: math.sqrt(abs(n)),
        lambda x, n: [n, {"n": n}, (n,)],
        # From CPython 3.12 on, it adds floats in another way, and is not followed.
        pytest.param(lambda x, n: sum([n, 1, n]), marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="sum")),
        lambda x, n: x * 2 if isinstance(n, int) and not isinstance(n, float) else x,
    ],
)
def test_what_python_computes_is_no_outcome(function: Function) -> None:
    check(function, torch.arange(4.0), NUMBERS)


@pytest.mark.parametrize(
    ("function", "traces"),
    [
        (lambda x, n: x * 2 if n > 4 else x, 2),
        (lambda x, n: x * 2 if n > 4.5 else x, 2),
        (lambda x, n: x * 2 if n in (7, 40) else x, 3),
        (lambda x, n: x if n else x + 1, 1),
        (lambda x, n: max(n, 4), 2),
    ],
)
def test_a_comparison_is_a_branch(function: Function, traces: int) -> None:
    check(function, torch.arange(4.0), NUMBERS, traces)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, n: x[:n],
        lambda x, n: x[n % 4],
        lambda x, n: torch.zeros(abs(n)),
        lambda x, n: [10, 20, 30][n % 3] + x,
        lambda x, n: list(range(n)),
        lambda x, n: [1] * n,
        lambda x, n: "ab" * n,
        lambda x, n: {7: 1}.get(n),
        lambda x, n: f"{n:>4}",
        lambda x, n: "%d of %s" % (n, n),  # noqa: UP031
        lambda x, n: n.bit_length(),
        lambda x, n: x.sum(n % 1),
        lambda x, n: x.view(2, 2).transpose(0, n % 2),
        lambda x, n: torch.full((2,), n),
        lambda x, n: x.repeat(abs(n)),
        lambda x, n: list(enumerate("ab", n)),
        lambda x, n: "abc".ljust(n),
        lambda x, n: type(n) is int,
        lambda x, n: torch.topk(x, abs(n) % 3 + 1).values,
    ],
)
def test_whoever_reads_an_int_reads_the_right_one(function: Function) -> None:
    def f(x: torch.Tensor, t: torch.Tensor) -> Any:
        return function(x, t.sum().item())

    jitted = dsjit.jit(f)
    for number in (*NUMBERS, *NUMBERS):
        t = torch.tensor([number, 0])
        assert_same(jitted(torch.arange(4.0), t), f(torch.arange(4.0), t))
    assert counters_of(jitted).calls_eager == 0
    assert counters_of(jitted).calls_compiled >= len(NUMBERS)


def test_an_int_that_no_tensor_holds_makes_the_call_eager() -> None:
    def f(t: torch.Tensor) -> int:
        n: int = t.item()  # type: ignore[assignment]
        return n * n

    jitted = dsjit.jit(f)
    for number in (3, 5):
        assert jitted(torch.tensor(number)) == number**2
    with pytest.warns(dsjit.DsjitWarning, match="int64"):
        assert jitted(torch.tensor(1 << 40)) == 1 << 80
    assert counters_of(jitted).traces == 1


def test_a_division_by_zero_raises_as_eager_does() -> None:
    jitted = dsjit.jit(lambda t: 10 // t.item())
    assert jitted(torch.tensor(3)) == jitted(torch.tensor(3)) == 3
    with pytest.raises(ZeroDivisionError, match="integer division or modulo by zero"):
        jitted(torch.tensor(0))
    assert jitted(torch.tensor(5)) == 2


def test_a_conversion_that_c_code_makes_is_an_outcome() -> None:
    jitted = dsjit.jit(lambda x: list(map(int, x)))
    for start in (0, 5, 0):
        assert jitted(torch.arange(3) + start) == [start, start + 1, start + 2]
    assert counters_of(jitted).traces == 2
