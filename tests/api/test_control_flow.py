"""Python's control flow on what tensors hold, as users write it: each call equals eager, and ways that were seen before
run compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import dsjit
from benchmarks.workloads.control_flow import (
    AdaptiveSteps,
    EarlyExitClassifier,
    RoutedExperts,
    eccentric_anomaly,
    inverse_square_root,
)
from dsjit.api.entry import jitted_of
from dsjit.api.stats import Counters
from tests.api.checks import assert_same, counters_of


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def both(function: Callable[..., Any], *calls: Any, rounds: int = 2) -> Counters:
    """Make the calls `rounds` times, jitted and in eager: results, raised errors and arguments afterwards are equal."""
    jitted = dsjit.jit(function)
    for x in calls * rounds:
        mine, theirs = copy.deepcopy(x), copy.deepcopy(x)
        assert_same(outcome(jitted, mine), outcome(function, theirs))
        assert_same(mine, theirs)
    return counters_of(jitted)


def outcome(function: Callable[..., Any], x: Any) -> Any:
    try:
        return function(x)
    except (AssertionError, ValueError) as error:
        return type(error), str(error).splitlines()[0]  # pytest adds the values of an assert


def first_negative(x: torch.Tensor) -> int:
    for position in range(len(x)):
        if x[position] < 0:
            return position
    return -1


def last_positive(x: torch.Tensor) -> torch.Tensor:
    found = x.sum()
    for row in x.flip(0):
        if row > 0:
            found = row * 10
            break
    else:
        found = found - 1
    return found


def short_circuit(x: torch.Tensor) -> torch.Tensor:
    return x + 1 if (x[0] > 0 and x[1] > 0) or not x[2] > 0 else x - 1


def comprehension(x: torch.Tensor) -> list[torch.Tensor]:
    return [row * 2 for row in x if row > 0]


def any_all(x: torch.Tensor) -> tuple[torch.Tensor, str]:
    if (x > 1).any():
        return x.clamp(max=1), "clamped"
    return x, "all negative" if (x < 0).all() else "small"


def nested(x: torch.Tensor) -> torch.Tensor:
    while x.abs().max() > 1:
        x = x / 2
        while x.sum() < -1:
            x = x + 0.5
    return x


def recursive(x: torch.Tensor) -> torch.Tensor:
    return x if x.abs().max() < 1 else recursive(x * 0.5) + 1


def checked(x: torch.Tensor) -> torch.Tensor:
    assert (x != 0).all(), "a zero"
    if x[0] < 0:
        raise ValueError("negative")
    return 1 / x


def loop_with_write(x: torch.Tensor) -> torch.Tensor:
    while x.sum() < 10:
        x += 1
        x[0] += 0.5
    return x


def masked(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    if len(x[x > 0]) > 1:
        y[x > 0] = 0
    return y


X = (
    torch.tensor([1.0, 2.0, 3.0]),
    torch.tensor([-1.0, 2.0, 0.5]),
    torch.tensor([0.5, -2.0, -0.25]),
    torch.tensor([-4.0, -8.0, -2.0]),
)


@pytest.mark.parametrize(
    "function",
    [first_negative, last_positive, short_circuit, comprehension, any_all, nested, recursive, loop_with_write, masked],
)
def test_each_way_is_traced_once(function: Callable[..., Any]) -> None:
    counters = both(function, *X)
    assert counters.calls_eager == 0
    assert counters.calls_traced <= len(X)
    assert counters.calls_compiled >= len(X)


def test_errors_of_some_ways_leave_the_others_compiled() -> None:
    counters = both(checked, torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 2.0]), rounds=3)
    assert counters.calls_compiled >= 2


def test_an_early_exit_compiles_its_equal_layers_once() -> None:
    model = EarlyExitClassifier(layers=6, width=8, classes=3, threshold=0.5).eval()
    xs = [torch.randn(1, 8) * scale for scale in (0.1, 1.0, 3.0, 9.0, 30.0)]
    counters = both(model.forward, *xs)
    assert counters.calls_eager == 0 and counters.calls_compiled >= len(xs)
    assert counters.compiles <= 4


def test_newtons_iteration_runs_a_new_number_of_times_without_compiling() -> None:
    jitted = dsjit.jit(inverse_square_root)
    compiles = []
    for ridge in (1e-1, 1.0, 1e-2, 1e-3):
        factor = torch.randn(2, 4, 4)
        matrices = factor @ factor.mT + ridge * torch.eye(4)
        assert_same(jitted(matrices, 1e-3), inverse_square_root(matrices, 1e-3))
        compiles.append(counters_of(jitted).compiles)
    assert compiles[1:] == compiles[:-1]


def test_an_iteration_to_a_tolerance_in_python_equals_eager() -> None:
    jitted = dsjit.jit(eccentric_anomaly)
    for scale in (0.1, 0.9, 0.5, 0.2, 0.8):
        mean, eccentricity = torch.rand(7) * 3, torch.rand(7) * scale
        assert_same(jitted(mean, eccentricity, 1e-5), eccentric_anomaly(mean, eccentricity, 1e-5))


class Chooser(torch.nn.Module):
    """Looks at a number in a way that no branch can stand for, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Linear(4, 4))])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
        x = self.layers[0](x).relu()
        label = f"{x.sum().item():.3f}"
        return self.layers[1](x), label


def test_the_modules_of_one_that_is_given_up_are_compiled_one_by_one() -> None:
    model, xs = Chooser().eval(), [torch.randn(3, 4) for _ in range(24)]
    expected = [model(x) for x in xs]
    dsjit.jit(model)
    with pytest.warns(dsjit.DsjitWarning, match="Chooser runs eagerly from now on"):
        for x, result in zip(xs, expected, strict=True):
            assert_same(model(x), result)
    eager = counters_of(model).calls_eager
    assert eager > 5 and counters_of(model).calls_traced + eager == len(xs)
    assert [counters_of(part).calls_compiled for part in model.layers] == [eager - 1, eager - 1]
    assert jitted_of(model.layers[1][0]) is None


def test_the_parts_of_a_module_are_put_back_with_it() -> None:
    model = dsjit.jit(Chooser().eval())
    with pytest.warns(dsjit.DsjitWarning, match="Chooser runs eagerly from now on"):
        for _ in range(18):
            model(torch.randn(3, 4))
    assert all(jitted_of(part) is not None for part in model.layers)
    dsjit.disable(model)
    assert all(jitted_of(part) is None for part in model.layers)


def test_routing_by_index_equals_eager_with_and_without_idle_experts() -> None:
    model = RoutedExperts(width=4, hidden=8, experts=3, chosen=1).eval()
    xs = [torch.randn(5, 4), torch.randn(1, 4).expand(5, 4).clone(), torch.randn(5, 4)]
    counters = both(model.forward, *xs)
    assert counters.calls_eager == 0 and counters.calls_compiled >= len(xs)


def test_adaptive_computation_stops_with_its_last_sample() -> None:
    model = AdaptiveSteps(4).eval()
    counters = both(model.forward, *[torch.randn(3, 4) * scale for scale in (0.1, 1.0, 4.0)])
    assert counters.calls_eager == 0 and counters.calls_compiled >= 3
