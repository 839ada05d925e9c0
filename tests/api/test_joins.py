"""Ways that meet again: after an `if`, what follows is compiled once, whichever way led there.

That is only so when Python is in the same state. What a way leaves behind for later makes it a way of its own, and
gives eager's answer all the same.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsjit
from dsjit.api.entry import jitted_of
from tests.api.checks import assert_same, counters_of

GATES = 6


def play(jitted: Any, eager: Callable[..., Any], ways: list[tuple[float, ...]]) -> int:
    """Call both with gates of these signs, compare them; how often the jitted one was traced."""
    counters = counters_of(jitted)
    before = counters.traces
    for number, way in enumerate(ways):
        x, gates = torch.linspace(-1, 1, 12).view(3, 4) + number, torch.tensor(way)
        mine, theirs = (x.clone(), gates.clone()), (x.clone(), gates.clone())
        with torch.no_grad():
            assert_same(jitted(*mine), eager(*theirs))
        assert_same(mine, theirs)
    return counters.traces - before


def ways(count: int = GATES) -> list[tuple[float, ...]]:
    """Every choice of signs, in an order that is no count."""
    every = list(itertools.product((1.0, -1.0), repeat=count))
    return [every[number * 37 % len(every)] for number in range(len(every))]


def ifs_one_after_the_other(x: Tensor, gates: Tensor) -> Tensor:
    if gates[0] > 0:
        x = x * 2
    if gates[1] > 0:
        y = x + 1
        x = x * y
    if gates[2] > 0:
        x = x.relu()
    else:
        x = x - 1
    if gates[3] > 0:
        x = x / 3
    if gates[4] > 0:
        x = x + gates[4]
    if gates[5] > 0:
        x = x.tanh()
    return x


def over_a_tuple(x: Tensor, gates: Tensor) -> Tensor:
    for gate, factor in zip(gates.unbind(), (1.5, 2.5, 3.5, 4.5, 5.5, 6.5), strict=True):
        if gate > 0:
            x = x * factor
    return x


def counted(x: Tensor, gates: Tensor) -> Tensor:
    for number, gate in enumerate(gates.unbind()):
        if gate > 0:
            x = x + number
    return x


def written_in_place(x: Tensor, gates: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for number in (1, 2, 3, 4, 5, 6):
        if gates[number - 1] > 0:
            out.add_(x * number)
    return out


class Layers(nn.Module):
    """Layers that may be skipped. chooses: whether a layer does so itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(GATES))

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            if gates[number] > 0:
                x = x + torch.tanh(layer(x))
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        if gate > 0:
            hidden = self.linear(x)
            x = x + torch.tanh(hidden)
        return x


class Blocks(nn.Module):
    """Layers that skip themselves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(GATES))

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        for block, gate in zip(self.blocks, gates.unbind(), strict=True):
            x = block(x, gate)
        return x


@pytest.mark.parametrize("function", [ifs_one_after_the_other, over_a_tuple, counted, written_in_place])
def test_ways_of_a_function_join(function: Callable[..., Any]) -> None:
    jitted = dsjit.jit(function)
    traces = play(jitted, function, ways())
    assert traces <= 2 * GATES + 1
    assert play(jitted, function, ways()) == 0
    assert counters_of(jitted).calls_eager == 0


@pytest.mark.parametrize("model", [Layers, Blocks])
def test_ways_of_a_module_join(model: type[nn.Module]) -> None:
    eager = model()
    jitted = dsjit.jit(copy.deepcopy(eager))
    assert play(jitted, eager, ways()) <= 2 * GATES + 1
    assert counters_of(jitted).calls_eager == 0


class Experts(nn.Module):
    """Each row goes to one expert."""

    def __init__(self, count: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            out.index_add_(0, rows, torch.tanh(expert(x[rows])))
        return out


def test_idle_and_busy_experts_join_whatever_the_counts() -> None:
    eager = Experts(4)
    jitted = dsjit.jit(copy.deepcopy(eager))
    generator = torch.Generator().manual_seed(0)
    counters = counters_of(jitted)
    traces = []
    for _ in range(90):
        used = torch.randint(1, 16, (), generator=generator)
        allowed = [expert for expert in range(4) if used >> expert & 1]
        chosen = torch.tensor(allowed)[torch.randint(0, len(allowed), (40,), generator=generator)]
        x = torch.randn(40, 4, generator=generator)
        with torch.no_grad():
            assert_same(jitted(x, chosen), eager(x, chosen))
        traces.append(counters.traces)
    assert traces[-1] <= 8  # of 15 sets of experts, each with other counts
    assert counters.calls_compiled >= 80


# -- what a way leaves behind ----------------------------------------------------------------------------------------


def flag_for_later(x: Tensor, gates: Tensor) -> Tensor:
    late = False
    if gates[0] > 0:
        late = True
    if gates[1] > 0:
        x = x * 2
    return x + 1 if late else x - 1


def list_that_grows(x: Tensor, gates: Tensor) -> Tensor:
    found = []
    for gate in gates.unbind():
        if gate > 0:
            found.append(x * gate)
    if gates.sum() > 0:
        x = x + 1
    return torch.stack(found).sum(0) if found else x


def another_dtype(x: Tensor, gates: Tensor) -> Tensor:
    y = x
    if gates[0] > 0:
        y = x.double()
    if gates[1] > 0:
        x = x * 2
    return y + x


def view_or_copy(x: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    base = x * 2
    part = base[1:] if gates[0] > 0 else base[1:].clone()
    if gates[1] > 0:
        x = x + 1
    base.mul_(3)
    return part, x


def the_same_or_another(x: Tensor, gates: Tensor) -> tuple[Tensor, bool]:
    y = x * 1
    z = y if gates[0] > 0 else x * 1
    if gates[1] > 0:
        x = x + 1
    return x, z is y


def variable_that_is_missing(x: Tensor, gates: Tensor) -> Tensor:
    if gates[0] > 0:
        extra = x * 2
    if gates[1] > 0:
        x = x + 1
    try:
        return x + extra
    except UnboundLocalError:
        return x


def grad_mode(x: Tensor, gates: Tensor) -> tuple[Tensor, bool]:
    if gates[0] > 0:
        torch.set_grad_enabled(False)
    if gates[1] > 0:
        x = x + 1
    return x, torch.is_grad_enabled()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = 0
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, gates: Tensor) -> tuple[Tensor, int]:
        layer = self.first
        if gates[0] > 0:
            self.last = 1
            layer = self.second
        else:
            self.last = 2
        if gates[1] > 0:
            x = x + 1
        return layer(x), self.last


LEAVES = [
    flag_for_later, list_that_grows, another_dtype, view_or_copy, the_same_or_another, variable_that_is_missing,
    grad_mode,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
@pytest.mark.parametrize("function", LEAVES)
def test_what_a_way_leaves_behind_is_not_lost(function: Callable[..., Any]) -> None:
    jitted = dsjit.jit(function)
    for _ in range(2):
        play(jitted, function, ways(4))


@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
def test_what_a_way_leaves_in_an_object_is_not_lost() -> None:
    eager = Counting()
    module = copy.deepcopy(eager)
    jitted = dsjit.jit(module)
    for _ in range(2):
        play(jitted, eager, ways(2))
        assert module.last == eager.last


def test_objects_are_known_by_where_they_are() -> None:
    """One way comes to a layer by one path, the other by another: one layer, until it is replaced in one place."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
            self.best = self.layers[1]

        def forward(self, x: Tensor, gates: Tensor) -> Tensor:
            if gates[0] > 0:
                layer = self.best
            else:
                layer = self.layers[1]
            if gates[1] > 0:
                x = x + 1
            return layer(x)

    eager = Model()
    module = copy.deepcopy(eager)
    jitted = dsjit.jit(module)
    play(jitted, eager, ways(2))
    for model in (eager, module):
        torch.manual_seed(1)
        model.best = nn.Linear(4, 4)
    play(jitted, eager, ways(2))


def test_the_tree_has_each_node_once() -> None:
    jitted = dsjit.jit(ifs_one_after_the_other)
    play(jitted, ifs_one_after_the_other, ways())
    found = jitted_of(jitted)
    assert found is not None
    (tree,) = found.trees
    assert len(tree.leaves) <= 4
    assert len(tree.branches) <= 4 * GATES
