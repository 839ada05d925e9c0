"""Loops that count in Python: after a few numbers of rounds, no other one is traced any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import dsjit
from tests.api.checks import assert_same, counters_of

STARTS = (1.0, 2.0, 30.0, 300.0, 1e-4, 5.0, 50.0, 0.5, 0.01, 100.0, 3.0, -1.0, 20.0, 8.0, 12.0, 700.0)


def bounded_while(x: torch.Tensor) -> Any:
    rounds = 0
    while x.sum() < 1000:
        x = x * 1.5 + 1
        rounds += 1
        if rounds > 9:
            break
    return x, rounds


def for_with_break(x: torch.Tensor) -> Any:
    for step in range(9):
        x = x * 1.5 + step
        if x.sum() > 1000:
            break
    return x, step


def for_with_else(x: torch.Tensor) -> Any:
    for step in range(2, 30, 3):
        x = x * 1.5 + step
        if (x.sum() > 1000).item():
            break
    else:
        return x - 1, None
    return x, step


def counting_down(x: torch.Tensor) -> Any:
    budget = 12
    while budget and x.max() < 50:
        x, budget = x * 2, budget - 1
    return x, budget


def shrinking_step(x: torch.Tensor) -> Any:
    rate = 1.0
    for _ in range(40):
        x = x * (1 + rate)
        rate *= 0.75
        if x.norm().item() > 50:
            return x, rate
    return x, -rate


def patience(x: torch.Tensor) -> Any:
    best, bad = float("inf"), 0
    for epoch in range(50):
        x = x * 0.5 + 1 / (epoch + 1)
        loss = (x - 2).abs().sum().item()
        if loss < best - 1e-3:
            best, bad = loss, 0
        else:
            bad += 1
        if bad == 3:
            break
    return x, epoch, best


def with_logging(x: torch.Tensor) -> Any:
    kept = x
    for step in range(20):
        x = x * 1.5 + 1
        if step % 4 == 0:
            kept = x
        if x.sum() > 1000:
            break
    return x, kept, step


def step(x: torch.Tensor) -> torch.Tensor:
    return x * 1.5 + 1


def is_done(x: torch.Tensor) -> bool:
    return bool(x.sum() > 1000)


def look_in_a_function(x: torch.Tensor) -> Any:
    count = 0
    for _ in range(9):
        x = step(x)
        count += 2
        if is_done(x):
            break
    return x, count


@pytest.mark.parametrize(
    ("function", "most"),
    [
        (bounded_while, 5),
        (for_with_break, 5),
        (for_with_else, 7),
        (counting_down, 6),
        (shrinking_step, 5),
        (patience, 13),
        (with_logging, 10),
        (look_in_a_function, 5),
    ],
)
def test_any_number_of_rounds_is_served(function: Callable[[torch.Tensor], Any], most: int) -> None:
    jitted = dsjit.jit(function)
    for start in STARTS:
        x = torch.full((3,), start)
        assert_same(jitted(x), function(x))
    counters = counters_of(jitted)
    assert counters.calls_eager == 0
    assert counters.traces <= most


def indexed(layers: list[float], x: torch.Tensor) -> torch.Tensor:
    for number in range(len(layers)):
        x = x * layers[number]
        if x.sum() > 1000:
            break
    return x


def collected(layers: list[float], x: torch.Tensor) -> Any:
    sums = []
    for number in range(5):
        x = x * 3 + number
        sums.append(x.sum())
        if x.sum() > 1000:
            break
    return sums


def over_a_list(layers: list[float], x: torch.Tensor) -> Any:
    for number, layer in enumerate(layers):
        x = x * layer
        if x.sum() > 1000:
            return x, number
    return x


def remembered(layers: list[float], x: torch.Tensor) -> Any:
    seen = {}
    for number in range(4):
        x = x * 5
        seen[number] = float(number)
        if x.sum() > 1000:
            break
    return x, seen


@pytest.mark.parametrize("function", [indexed, collected, over_a_list, remembered])
def test_what_is_used_as_an_index_or_collected_is_as_eager_has_it(function: Callable[..., Any]) -> None:
    layers = [1.5, 2.0, 0.5, 3.0, 4.0]
    jitted = dsjit.jit(function)
    for start in STARTS:
        x = torch.full((3,), start)
        assert_same(jitted(layers, x), function(layers, x))
    assert counters_of(jitted).calls_eager == 0


def test_an_iterator_that_the_function_holds_stays_its_own() -> None:
    def f(x: torch.Tensor) -> Any:
        numbers = iter(range(9))
        for number in numbers:
            x = x * 1.5 + number
            if x.sum() > 1000:
                break
        return x, list(numbers)

    jitted = dsjit.jit(f)
    for start in STARTS:
        x = torch.full((3,), start)
        assert_same(jitted(x), f(x))
