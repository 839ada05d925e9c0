"""A number that was taken out of a tensor, as an argument of torch functions: eager's bits, and no new trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import dsjit
from dsjit.api.entry import jitted_of
from tests.api.checks import assert_same, counters_of

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.uint8)

NUMBERS = (0.37, -1.0 / 3.0, 1e-8, -0.0, 65000.1, float("inf"), float("nan"))

Function = Callable[[torch.Tensor, float], Any]


def operand(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


def assign(x: torch.Tensor, index: Any, s: float) -> torch.Tensor:
    y = x.clone()
    y[index] = s
    return y


ARITHMETIC: dict[str, Function] = {
    "x + s": lambda x, s: x + s,
    "s + x": lambda x, s: s + x,
    "x - s": lambda x, s: x - s,
    "s - x": lambda x, s: s - x,
    "x * s": lambda x, s: x * s,
    "s * x": lambda x, s: s * x,
    "x / s": lambda x, s: x / s,
    "s / x": lambda x, s: s / x,
    "torch.add": lambda x, s: torch.add(x, s),
    "sub with alpha": lambda x, s: x.sub(s, alpha=2),
    "rsub": lambda x, s: torch.rsub(x, s),
}

BOUNDS: dict[str, Function] = {
    "clamp min": lambda x, s: x.clamp(min=s),
    "clamp max": lambda x, s: x.clamp(max=s),
    "clamp_min": lambda x, s: torch.clamp_min(x, s),
    "clip": lambda x, s: torch.clip(x, max=s),
    "clamp_": lambda x, s: x.double().clamp_(min=s),
}

COMPARISONS: dict[str, Function] = {
    "x < s": lambda x, s: x < s,
    "x <= s": lambda x, s: x <= s,
    "s < x": lambda x, s: s < x,
    "x >= s": lambda x, s: x >= s,
    "x == s": lambda x, s: x == s,
    "x != s": lambda x, s: torch.ne(x, s),
}

FILLINGS: dict[str, Function] = {
    "masked_fill": lambda x, s: x.masked_fill(x > 0, s),
    "where": lambda x, s: torch.where(x > 0, x, s),
    "full_like": lambda x, s: torch.full_like(x, s),
    "new_full": lambda x, s: x.new_full((2, 2), s),
    "fill_": lambda x, s: operand(x).fill_(s),
    "masked_fill_": lambda x, s: operand(x).masked_fill_(x > 0, s),
    "x[0] = s": lambda x, s: assign(x, 0, s),
    "x[:, 1] = s": lambda x, s: assign(x, (slice(None), 1), s),
    "x[mask] = s": lambda x, s: assign(x, x > 0, s),
    "tensor of a dtype": lambda x, s: torch.tensor(s, dtype=x.dtype),
    "scalar_tensor": lambda x, s: torch.scalar_tensor(s, dtype=x.dtype),
    "new_tensor": lambda x, s: x.new_tensor(s),
}

IN_PLACE: dict[str, Function] = {
    "mul_": lambda x, s: operand(x).mul_(s),
    "add_": lambda x, s: operand(x).add_(s),
    "div_": lambda x, s: operand(x).div_(s),
}

SCALARS: dict[str, Function] = {
    "alpha of add": lambda x, s: torch.add(x, x, alpha=s),
    "alpha of sub": lambda x, s: x.sub(x.flip(0), alpha=s),
    "alpha of sub_": lambda x, s: operand(x).sub_(x.flip(0), alpha=s),
    "value of addcmul": lambda x, s: torch.addcmul(x, x, x, value=s),
    "value of addcdiv_": lambda x, s: operand(x).addcdiv_(x, x + 1, value=s),
    "exponent": lambda x, s: torch.pow(x, s),
    "exponent of a method": lambda x, s: x.pow(s),
    "base": lambda x, s: torch.pow(s, x),
}

FACTORIES: dict[str, Function] = {
    "tensor": lambda x, s: torch.tensor(s) + x,
    "as_tensor": lambda x, s: torch.as_tensor(s) * x,
    "full": lambda x, s: torch.full((3,), s),
    "full of a dtype": lambda x, s: torch.full((2, 3), s, dtype=x.dtype),
}


def cases(table: dict[str, Function], dtypes: tuple[torch.dtype, ...]) -> Iterator[Any]:
    for name, function in table.items():
        for dtype in dtypes:
            yield pytest.param(function, dtype, id=f"{name}, {str(dtype).removeprefix('torch.')}")


def sample(dtype: torch.dtype) -> torch.Tensor:
    values = torch.linspace(-3, 3, 32)
    if not dtype.is_floating_point:
        return (values.abs() * 7).to(dtype).view(4, 8)
    values[10:15] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])
    return values.to(dtype).view(4, 8)


def assert_same_bits(found: Any, expected: Any) -> None:
    """Equal to the sign of zero; any NaN is as good as another."""
    assert_same(found, expected, exact=True)
    pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    for a, b in pairs:
        if b.is_floating_point():
            assert torch.equal(a.signbit() & ~a.isnan(), b.signbit() & ~b.isnan())


def check(function: Function, x: torch.Tensor, numbers: tuple[float, ...], traces: int | None = 1) -> None:
    """Every call gives eager's bits; the first one's trace serves all others."""

    def f(x: torch.Tensor, t: torch.Tensor) -> Any:
        return function(x, t.item())

    jitted = dsjit.jit(f)
    for number in numbers:
        t = torch.tensor(number, dtype=torch.float64)
        assert_same_bits(jitted(x, t), f(x, t))
    counters = counters_of(jitted)
    assert counters.calls_eager == 0
    if traces is not None:
        assert counters.traces == traces


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        *cases(ARITHMETIC, (*FLOATING, *INTEGERS)),
        *cases(COMPARISONS, (*FLOATING, *INTEGERS)),
        *cases(IN_PLACE, FLOATING),
    ],
)
def test_the_number_rounds_as_a_python_number_does(function: Function, dtype: torch.dtype) -> None:
    check(function, sample(dtype), NUMBERS)


@pytest.mark.parametrize(("function", "dtype"), [*cases(SCALARS, FLOATING)])
def test_arguments_that_are_numbers_in_every_overload(function: Function, dtype: torch.dtype) -> None:
    check(function, sample(dtype), (0.37, 0.5, 2.0, -1.0, 1e-8, 0.0, math.inf, math.nan))


@pytest.mark.parametrize(("function", "dtype"), [*cases(FILLINGS, FLOATING), *cases(FACTORIES, FLOATING)])
def test_tensors_filled_with_the_number(function: Function, dtype: torch.dtype) -> None:
    check(function, sample(dtype), tuple(filter(math.isfinite, NUMBERS)))
    check(function, sample(dtype), NUMBERS, traces=None)


@pytest.mark.parametrize(("function", "dtype"), [*cases(BOUNDS, (*FLOATING, *INTEGERS))])
def test_bounds(function: Function, dtype: torch.dtype) -> None:
    check(function, sample(dtype), tuple(number for number in NUMBERS if 1e-3 < abs(number) < math.inf))


def test_a_bound_that_is_no_number_is_another_outcome() -> None:
    check(lambda x, s: x.clamp(min=s), sample(torch.float32), (0.5, math.nan, 0.25, math.nan), traces=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interpolation_by_a_number(dtype: torch.dtype) -> None:
    check(lambda x, s: torch.lerp(x, x.flip(0), s), sample(dtype), (0.37, 0.5, 0.75, -2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_tensors_of_no_dimension_keep_their_dtype(dtype: torch.dtype) -> None:
    check(lambda x, s: (x[0, 0] * s, x[0, 1] + s, x[1, 1] > s), sample(dtype), NUMBERS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_tensors_of_no_dimension_are_right_too(dtype: torch.dtype) -> None:
    check(lambda x, s: x[0, 0] * s, sample(dtype), NUMBERS[:4], traces=None)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, s: torch.nn.functional.leaky_relu(x, s),
        lambda x, s: torch.nn.functional.threshold(x, s, s),
        lambda x, s: x.clamp(s, s),
        lambda x, s: x.clamp(s, 2.0),
        lambda x, s: torch.tensor([s, 1.0]),
        lambda x, s: torch.linspace(0, s, 3),
        lambda x, s: torch.ops.aten.mul.Tensor(x, s),
        lambda x, s: torch.full((2,), s, dtype=torch.int64),
        lambda x, s: torch.nn.init.constant_(torch.empty(3), s),
        lambda x, s: torch.nn.functional.pad(x, (1, 1), value=s),
        lambda x, s: torch.nn.functional.dropout(x, s, training=False),
    ],
)
def test_other_uses_are_right(function: Function) -> None:
    check(function, sample(torch.float32), (0.37, 0.5, 0.75, 1.0, 0.37, 0.5), traces=None)


def test_an_exponent_is_right_too() -> None:
    """The power 0.5 is a square root, which eager may round the other way (docs/numerics.md)."""
    check(lambda x, s: x**s, sample(torch.float32), (0.37, 0.75, 1.0, 2.0, 0.37, -1.0), traces=None)
    power, x = dsjit.jit(lambda x, s: x**s), sample(torch.float32).abs()
    for exponent in (0.37, 0.5, 0.75):
        power(x, exponent)
    assert_same_bits(power(x, 0.5), x.double().sqrt().float())


def test_a_number_equal_to_a_constant_of_the_call_is_not_mistaken() -> None:
    check(lambda x, s: x.clamp(min=s, max=0.5), sample(torch.float32), (0.5, 0.25, 0.5, 0.125), traces=None)
    check(lambda x, s: torch.add(x, s, alpha=0.5), sample(torch.float32), (0.5, 0.25, 0.5, 0.125), traces=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, s: torch.full_like(x, s),
        lambda x, s: x.masked_fill(x > 0, s),
        lambda x, s: x.clamp(max=s),
        lambda x, s: torch.where(x > 0, x, s),
        lambda x, s: assign(x, 0, s),
        lambda x, s: x * s,
        lambda x, s: x > s,
    ],
)
def test_numbers_that_do_not_fit_are_refused_as_by_eager(function: Function, dtype: torch.dtype) -> None:
    def f(x: torch.Tensor, t: torch.Tensor) -> Any:
        return function(x, t.item())

    jitted, x = dsjit.jit(f), sample(dtype)
    for number in (2.0, 1e300, 3.0, 1e6, math.inf, -1e39, 65520.0, 4.0):
        t = torch.tensor(number, dtype=torch.float64)
        try:
            expected = f(x, t)
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match=str(error)):
                jitted(x, t)
        else:
            assert_same_bits(jitted(x, t), expected)


def test_a_number_that_must_fit_needs_no_check() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, x.amax().item() * 0.5)

    jitted = dsjit.jit(f)
    for number in (1.0, 2.0, 3.0):
        x = torch.full((4,), number)
        assert_same_bits(jitted(x), f(x))
    found = jitted_of(jitted)
    assert found is not None
    [tree] = found.trees
    assert not tree.branches


def test_whether_torch_refuses_the_number_is_an_outcome() -> None:
    def f(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        try:
            return x.masked_fill(x > 3, t.item())
        except RuntimeError:
            return x

    jitted = dsjit.jit(f)
    x = sample(torch.uint8)
    for number in (3.0, 1000.0, 4.0, 1e300):
        t = torch.tensor(number, dtype=torch.float64)
        assert_same(jitted(x, t), f(x, t), exact=True)
