"""Loops on tensor values: a number of rounds that was never seen traces nothing and compiles nothing.

That is only so when Python is in the same state after a round as before it. Whatever counts, collects or puts back is
no such loop, and gives eager's answer all the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsjit
from dsjit.api.entry import jitted_of
from tests.api.checks import assert_same, counters_of
from tests.api.loops import halving, is_small_by_a_branch, run

SEEN = [5, 1, 0, 2]
UNSEEN = [3, 4, 6, 7, 9, 12, 20, 33]


def until_small(x: Tensor) -> Tensor:
    while x.abs().max() >= 1:
        x = x / 2
    return x + 1


def number_is_small(x: Tensor, limit: float = 1.0) -> Tensor:
    while True:
        x = x / 2
        if x.abs().max().item() < limit:
            break
    return x


def assigned_in_the_test(x: Tensor) -> tuple[Tensor, Tensor]:
    while (largest := x.max()) >= 1:
        x = x / 2
    return x, largest


def called_bool(x: Tensor) -> Tensor:
    y = x * 2
    while bool((y - x).abs().max() >= 1):
        x, y = x / 2, y / 2
    return x - y


def item_of_truths(x: Tensor) -> Tensor:
    while (x >= 1).any().item():
        x = torch.where(x >= 1, x / 2, x)
    return x


def not_yet(x: Tensor) -> Tensor:
    while not (x < 1).all():
        x = x / 2
    return x


def with_a_tuple(x: Tensor) -> Tensor:
    state = (x, torch.zeros_like(x))
    while state[0].max() >= 1:
        state = (state[0] / 2, state[1] + state[0])
    return state[1]


def in_place(x: Tensor) -> Tensor:
    y = x.clone()
    count = torch.zeros(())
    while y.max() >= 1:
        y.mul_(0.5)
        count += 1
    return torch.cat([y, count[None]])


def in_place_of_the_argument(x: Tensor) -> Tensor:
    while x.max() >= 1:
        x.mul_(0.5)
    return x.sum()


def rows_in_place(x: Tensor) -> Tensor:
    y = torch.stack([x, x + 1])
    first = y[0]
    while first.max() >= 1:
        y[0] *= 0.5
    return y


def swapped(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = x, x * 0.5
    while a.max() >= 1:
        a, b = b, a * 0.5
    return a, b


def branches_inside(x: Tensor) -> Tensor:
    while x.max() >= 1:
        x = x / 2 if x.sum() > 6 else x / 2 + 0.01 * x
    return x


def two_loops(x: Tensor) -> Tensor:
    y = x
    while x.max() >= 1:
        x = x / 2
    while y.max() >= 2:
        y = y / 2
    return x + y


def nested_loops(x: Tensor) -> Tensor:
    total = torch.zeros(())
    while x.max() >= 1:
        y = x
        while y.sum() >= 1:
            y = y / 4
        total = total + y.sum()
        x = x / 2
    return total


def under_no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        while x.max() >= 1:
            x = x / 2
    return x


@torch.no_grad()
def decorated(x: Tensor) -> Tensor:
    while x.max() >= 1:
        x = x / 2
    return x


def views(x: Tensor) -> Tensor:
    y = (x * 1).view(2, 2)
    while y.t()[0].max() >= 1:
        y = (y / 2).t().contiguous().view(2, 2)
    return y


def random_steps(x: Tensor) -> Tensor:
    torch.manual_seed(5)
    while x.max() >= 1:
        x = x / 2 - 0.01 * torch.rand(4)
    return x


def float_is_carried(x: Tensor) -> tuple[Tensor, float]:
    best = x.max().item()
    while best >= 1.0:
        x = x / 2
        best = x.max().item()
    return x, best


def is_small(x: Tensor, limit: float) -> bool:
    return bool(x.max() < limit)


def is_small_by_another(x: Tensor) -> bool:
    return not is_small_by_a_branch(x)


def until_a_function_says_so(x: Tensor) -> Tensor:
    while not is_small(x, 1.0):
        x = x / 2
    return x


def until_a_function_branches(x: Tensor) -> Tensor:
    while True:
        if is_small_by_a_branch(x):
            break
        x = x / 2
    return x


def until_a_function_of_a_function(x: Tensor) -> Tensor:
    while is_small_by_another(x):
        x = x / 2
    return x


FOLDED = [
    until_a_function_says_so,
    until_a_function_branches,
    until_a_function_of_a_function,
    until_small,
    number_is_small,
    assigned_in_the_test,
    called_bool,
    item_of_truths,
    not_yet,
    with_a_tuple,
    in_place,
    in_place_of_the_argument,
    rows_in_place,
    swapped,
    under_no_grad,
    decorated,
    views,
    random_steps,
    float_is_carried,
]


@pytest.mark.parametrize("function", FOLDED, ids=lambda function: function.__name__)
def test_a_new_number_of_rounds_traces_and_compiles_nothing(function: Callable[..., Any]) -> None:
    jitted = run(function, SEEN)
    counters = counters_of(jitted)
    before = counters.traces, counters.compiles
    for count in UNSEEN:
        mine, theirs = halving(count), halving(count)
        assert_same(jitted(mine), function(theirs))
        assert_same(mine, theirs)
    assert (counters.traces, counters.compiles, counters.calls_eager) == (*before, 0)
    assert len(jitted_of(jitted).trees) == 1


@pytest.mark.parametrize("function", [branches_inside, two_loops, nested_loops], ids=lambda f: f.__name__)
def test_loops_with_ways_of_their_own_settle(function: Callable[..., Any]) -> None:
    jitted = run(function, [*SEEN, 6, 8, 11, 13])
    counters = counters_of(jitted)
    before = counters.traces
    for count in (4, 7, 10, 15, 20, 24):
        assert_same(jitted(halving(count)), function(halving(count)))
    assert counters.traces == before and counters.calls_eager == 0


class Solver(nn.Module):
    """Halves until small, by a submodule; what is small, a method tells."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(4, 4, bias=False)
        self.limit = 1.0
        with torch.no_grad():
            self.step.weight.copy_(torch.eye(4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max().item() >= self.limit:
            x = self.step(x)
        while not self.is_tiny(x):
            x = self.step(x)
        return x

    def is_tiny(self, x: Tensor) -> bool:
        return bool(x.sum() < self.limit / 4)


def test_a_loop_in_a_method_of_a_module() -> None:
    module = Solver()
    jitted = dsjit.jit(module)
    with torch.no_grad():
        for count in SEEN:
            assert_same(jitted(halving(count)), module(halving(count)))
        traces = counters_of(jitted).traces
        for count in UNSEEN:
            assert_same(jitted(halving(count)), module(halving(count)))
        assert counters_of(jitted).traces == traces
        module.limit = 2.0
        for count in (3, 9, 15):
            assert_same(jitted(halving(count)), module(halving(count)))


def test_a_loop_in_a_function_that_is_called_again_and_again() -> None:
    def f(x: Tensor) -> Tensor:
        for factor in (1.0, 8.0, 64.0):
            x = until_small(x * factor)
        return x

    jitted = run(f, [5, 4, 0])
    traces = counters_of(jitted).traces
    for count in (1, 2, 9, 20):
        assert_same(jitted(halving(count)), f(halving(count)))
    assert counters_of(jitted).traces == traces


def test_a_loop_of_a_single_trace() -> None:
    counters = counters_of(run(until_small, [20, 8, 15, 30, 6]))
    assert (counters.calls_traced, counters.calls_compiled) == (1, 4)


def test_state_that_the_loop_reads_is_guarded() -> None:
    config = {"divisor": 2.0}

    def f(x: Tensor) -> Tensor:
        while x.max() >= 1:
            x = x / config["divisor"]
        return x

    jitted = dsjit.jit(f)
    for divisor, count in itertools.product((2.0, 3.0, 2.0), (5, 2, 9, 12)):
        config["divisor"] = divisor
        assert_same(jitted(halving(count)), f(halving(count)))
