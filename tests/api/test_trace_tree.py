"""Control flow on what tensors hold: outcomes lead to branches, branches share what they have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.api.trace_tree import TraceTree
from tests.api.checks import assert_same, counters_of


def runs(function: Callable[..., Any], *calls: tuple[Any, ...]) -> Any:
    """Call the jitted function with each of the arguments, in turn, compare with eager; the counters."""
    jitted = dsjit.jit(function)
    with torch.no_grad():
        for arguments in calls:
            mine = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in arguments]
            theirs = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in arguments]
            assert_same(jitted(*mine), function(*theirs))
            assert_same(mine, theirs)
    return counters_of(jitted)


def filled(*values: float) -> list[tuple[torch.Tensor]]:
    return [(torch.full((8,), value),) for value in values]


def early_return(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    if y.sum() > 10:
        return y.exp()
    return y - 1


def loop(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    count = 0
    while x.sum() < 100:
        x = x + 1
        count += 1
    return x, count


def test_an_outcome_that_was_seen_runs_compiled() -> None:
    counters = runs(early_return, *filled(1.0, 5.0, 1.5, 6.0, -1.0, 7.0))
    assert (counters.calls_traced, counters.calls_compiled, counters.calls_eager) == (2, 4, 0)


def test_a_new_outcome_compiles_only_what_comes_after_it() -> None:
    counters = runs(early_return, *filled(1.0))
    first = counters.compiles
    assert first == 2
    assert runs(early_return, *filled(1.0, 5.0)).compiles <= 3


def test_the_body_of_a_loop_is_compiled_once() -> None:
    jitted = dsjit.jit(loop)
    with torch.no_grad():
        jitted(torch.full((8,), 1.0))
        compiled = counters_of(jitted).compiles
        jitted(torch.full((8,), -20.0))
        jitted(torch.full((8,), 5.0))
    counters = counters_of(jitted)
    assert compiled < 6
    assert counters.compiles == compiled
    assert counters.traces == 1


def test_a_loop_runs_any_number_of_times() -> None:
    counters = runs(loop, *filled(1.0, 5.0, 12.0, 20.0, -3.0, 1.0, 5.0, 12.0, 20.0, -3.0))
    assert counters.calls_compiled == 7 and counters.calls_eager == 0


def test_nothing_is_written_before_the_last_outcome_is_known() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        if x.sum() > 20:
            x.mul_(3)
        return x.sum()

    counters = runs(f, *filled(0.0, 5.0, 1.0, 6.0))
    assert counters.calls_compiled == 2 and counters.calls_eager == 0


def test_random_numbers_go_on_where_eager_goes_on() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        noise = torch.rand_like(x)
        if x.sum() > 0:
            return x + noise
        return x - noise * torch.rand_like(x)

    jitted = dsjit.jit(f)
    for value in (1.0, -1.0, 1.0, -1.0):
        x = torch.full((4,), value)
        torch.manual_seed(3)
        expected, state = f(x), torch.get_rng_state()
        torch.manual_seed(3)
        assert_same(jitted(x), expected)
        assert torch.equal(torch.get_rng_state(), state)
    assert counters_of(jitted).calls_compiled == 2


def test_python_state_that_only_one_branch_reads_is_guarded_there() -> None:
    scale = {"value": 2.0}

    def f(x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * scale["value"]
        return x

    jitted = dsjit.jit(f)
    with torch.no_grad():
        for value, number in ((-1.0, 2.0), (1.0, 2.0), (1.0, 3.0), (-1.0, 3.0), (1.0, 3.0), (1.0, 2.0)):
            scale["value"] = number
            x = torch.full((4,), value)
            assert_same(jitted(x), f(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2 if x.all() else x,
        lambda x: x[int(x.sum()) % 3],
        lambda x: x * len(repr(float(x[0]) / 3)) + hash(float(x[0])),
        lambda x: x + 1 if torch.equal(x, x.flip(0)) else x,
        lambda x: [v * 2 for v in x.tolist()],
    ],
)
def test_ways_of_looking(function: Callable[..., Any]) -> None:
    values = [(torch.tensor([1.0, 2.0, 1.0]),), (torch.tensor([0.0, 3.0, 2.0]),)]
    counters = runs(function, *values, *values)
    assert (counters.calls_traced, counters.calls_compiled) == (2, 2)


def test_a_look_that_always_sees_something_new_goes_on_eagerly_with_a_reason() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.full((3,), float(hash(x.sum().item())))

    jitted = dsjit.jit(f)
    with pytest.warns(dsjit.DsjitWarning, match="the value of a tensor was seen to be 16 different things"):
        for number in range(20):
            x = torch.full((4,), float(number))
            assert_same(jitted(x), f(x))
    assert counters_of(jitted).calls_eager > 0
    traces = counters_of(jitted).traces
    jitted(torch.full((4,), 99.0))
    assert counters_of(jitted).traces == traces


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.nonzero(x > 1) * 2,
        lambda x: x[x > 1].exp() + x.sum(),
        lambda x: (x > 1).nonzero(as_tuple=True)[0] if len((x > 0).nonzero()) else x,
    ],
)
def test_no_rows_and_some_rows_are_branches_of_one_tree(function: Callable[..., Any]) -> None:
    jitted = dsjit.jit(function)
    xs = [torch.tensor(values) for values in ([1.0, 2.0, 1.0], [3.0, 3.0, 2.0], [0.0, 0.0, 0.0], [0.5, 3.0, 2.0])]
    for x in (*xs, *xs):
        assert_same(jitted(x), function(x))
    [_] = jitted_of(jitted).trees
    assert (counters_of(jitted).calls_traced, counters_of(jitted).calls_compiled) == (2, 6)


def powers(x: torch.Tensor) -> torch.Tensor:
    """Its ways do not join: the list tells them apart."""
    doubled = []
    for bit in range(6):
        if x[bit] > 0:
            x = x * 2
            doubled.append(bit)
    return x * len(doubled)


def signs(number: int) -> torch.Tensor:
    return torch.tensor([1.0 if number >> bit & 1 else -1.0 for bit in range(6)])


def test_a_tree_whose_ways_come_again_goes_on_growing() -> None:
    jitted = dsjit.jit(powers)
    for number in range(36):
        for _ in range(6):
            assert_same(jitted(signs(number)), powers(signs(number)))
    assert counters_of(jitted).calls_eager == 0
    assert counters_of(jitted).calls_traced == 36


def test_a_tree_whose_ways_are_always_new_is_given_up() -> None:
    jitted = dsjit.jit(powers)
    with pytest.warns(dsjit.DsjitWarning, match="different ways, and seldom one of them again"):
        for number in range(63):
            assert_same(jitted(signs(number)), powers(signs(number)))
    assert counters_of(jitted).calls_eager >= 30
    traces = counters_of(jitted).calls_traced
    jitted(signs(63))
    assert counters_of(jitted).calls_traced == traces


def test_a_new_way_waits_until_the_ways_before_it_have_come_again() -> None:
    jitted = dsjit.jit(powers)
    for number in range(40):
        assert_same(jitted(signs(number)), powers(signs(number)))
    traces = counters_of(jitted).calls_traced
    assert counters_of(jitted).calls_eager == 40 - traces > 0
    for _ in range(40):
        jitted(signs(0))
    jitted(signs(63))
    assert counters_of(jitted).calls_traced == traces + 1


def test_trees_that_cannot_grow_count_towards_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TraceTree, "grow", lambda *arguments: False)
    jitted = dsjit.jit(powers, recompile_limit=4)
    with pytest.warns(dsjit.DsjitWarning, match="the limit of 4 programs is reached"):
        for number in range(10):
            assert_same(jitted(signs(number)), powers(signs(number)))
    assert len(jitted_of(jitted).trees) == 4
    assert (counters_of(jitted).calls_traced, counters_of(jitted).calls_eager) == (5, 5)


def test_explain_tells_the_branches() -> None:
    jitted = dsjit.jit(early_return)
    jitted(torch.ones(8))
    explained = dsjit.explain(jitted)(torch.zeros(8))
    [line] = explained.branches
    assert "the truth of a tensor: True, False" in line and __file__ in line


def test_equal_layers_that_are_jitted_one_by_one_share_their_programs() -> None:
    layers = [torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval() for _ in range(6)]
    dsjit.reset_stats()
    jitted = [dsjit.jit(layer) for layer in layers]
    with torch.no_grad():
        for _ in range(2):
            x = torch.randn(2, 5, 32)
            for layer in jitted:
                x = layer(x)
    totals = dsjit.stats().total
    assert totals.compiles == 1
    assert totals.programs_reused == 5
    assert totals.calls_compiled == 6
