"""Loops over things that differ, left where a tensor says so: after a few such calls, no depth is traced any more.

What comes after the loop is compiled once, for all rounds in which it may be left. What the rounds leave behind for
later makes their exits ways of their own, and gives eager's answer all the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsjit
from tests.api.checks import assert_same, counters_of

DEPTH = 7
WIDTH = 6
DEPTHS = (4, 8, 5, 1, 2, 7, 6, 8, 3, 1, 6, 2)
"""The rounds in which the calls leave the loop, one after the other; 8: it ends by itself."""


def limit_for(depth: int) -> Tensor:
    """Of a loop that is left in round n when the limit is below n."""
    return torch.tensor(depth - 0.5)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 2) for _ in range(DEPTH))
        self.marks = torch.arange(1.0, DEPTH + 1)
        self.names = tuple("abcdefghij")
        self.scale = 2.0
        self.rounds = 0


class Break(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        count = 0
        for layer, head in zip(self.layers, self.heads, strict=True):
            count += 1
            x = x + layer(x).tanh()
            logits = head(x)
            if self.marks[count - 1] > limit:
                break
        return logits, count


class ReturnInside(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        for number, layer in enumerate(self.layers):
            x = x + layer(x).tanh()
            if self.marks[number] > limit:
                return x * self.scale, number
        return x, -1


class WorkAfterwards(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        for number, layer in enumerate(self.layers):
            x = x + layer(x).tanh()
            if self.marks[number] > limit:
                break
        else:
            return x.sum()
        return x.softmax(-1) * (number + 1)


class NotDone(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        budget = 10.0
        for number, layer in enumerate(self.layers):
            x = layer(x).tanh()
            budget -= 0.75
            if self.marks[number] <= limit:
                continue
            break
        return x, budget


class ItemComparison(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        for number, layer in enumerate(self.layers):
            x = layer(x).tanh()
            if (self.marks[number] - limit).item() > 0:
                break
        return x, number


class Chunks(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        total = x[:, 0] * 0
        for mark, part in zip(self.marks.unbind(), x.repeat(1, 2).split(1, dim=1), strict=False):
            total = total + part[:, 0].exp()
            if mark > limit:
                break
        return total


@pytest.mark.parametrize("model", [Break, ReturnInside, WorkAfterwards, NotDone, ItemComparison, Chunks])
def test_no_depth_is_traced_any_more(model: Callable[[], Layers]) -> None:
    eager = model()
    jitted = dsjit.jit(copy.deepcopy(eager))
    play(jitted, eager, DEPTHS[:5])
    counters = counters_of(jitted)
    traces = counters.traces
    assert traces <= 4
    play(jitted, eager, DEPTHS)
    assert (counters.traces, counters.calls_eager) == (traces, 0)


def play(jitted: Any, eager: Any, depths: tuple[int, ...]) -> None:
    for number, depth in enumerate(depths):
        x = torch.linspace(-1, 1, 2 * WIDTH).view(2, WIDTH) * (number + 1)
        mine, theirs = (x.clone(), limit_for(depth)), (x.clone(), limit_for(depth))
        state = torch.get_rng_state()
        with torch.no_grad():
            wanted = eager(*theirs)
            drawn = torch.get_rng_state()
            torch.set_rng_state(state)
            assert_same(jitted(*mine), wanted)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert_same(mine, theirs)


class BranchOnTheCount(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        count = 0
        for layer in self.layers:
            count += 1
            x = layer(x).tanh()
            if self.marks[count - 1] > limit:
                break
        if count > 3:
            x = x * count
        return x, "deep" if count % 2 else count


class IndexByTheCount(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        for number, layer in enumerate(self.layers):
            x = layer(x).tanh()
            if self.marks[number] > limit:
                break
        return self.heads[number](x), self.names[number], x[:, : number + 1], x / (number + 1), f"left after {number}"


class KeepsAll(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        found = []
        for number, layer in enumerate(self.layers):
            x = layer(x).tanh()
            found.append(x)
            if self.marks[number] > limit:
                break
        return found


class KeepsABest(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        best, at = x, 0
        for number, layer in enumerate(self.layers):
            x = layer(x).tanh()
            if number % 3 == 1:
                best, at = x, number
            if self.marks[number] > limit:
                break
        return x, best, at


class CountsItsRounds(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        for number, layer in enumerate(self.layers):
            self.rounds += 1
            x = layer(x).tanh()
            if self.marks[number] > limit:
                break
        return x, self.rounds


class WritesInPlace(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        for number, layer in enumerate(self.layers):
            x.add_(layer(x).tanh())
            if self.marks[number] > limit:
                break
        return x[0]


class Draws(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        for number, layer in enumerate(self.layers):
            x = nn.functional.dropout(layer(x).tanh(), 0.3)
            if self.marks[number] > limit:
                break
        return torch.rand_like(x) + x, number


class Nested(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        steps = 0
        for _ in range(2):
            for number, layer in enumerate(self.layers):
                steps += 1
                x = layer(x).tanh()
                if self.marks[number] > limit:
                    break
            x = x + 1
        return x, steps


class TwoExits(Layers):
    def forward(self, x: Tensor, limit: Tensor) -> Any:
        for number, layer in enumerate(self.layers):
            x = layer(x).tanh()
            if self.marks[number] > limit:
                return x, "limit"
            if self.marks[number] * 2 > limit + 3:
                return x, number
        return x


class LastLayerWins(Layers):
    """The variable of the loop is read after it."""

    def forward(self, x: Tensor, limit: Tensor) -> Any:
        for layer, mark in zip(self.layers, self.marks, strict=True):
            x = layer(x).tanh()
            if mark > limit:
                break
        return layer(x), x.shape[0]


WITH_MEMORY = (
    BranchOnTheCount, IndexByTheCount, KeepsAll, KeepsABest, CountsItsRounds, WritesInPlace, Draws, Nested, TwoExits,
    LastLayerWins,
)  # fmt: skip


@pytest.mark.parametrize("model", WITH_MEMORY)
def test_what_the_rounds_leave_behind_is_not_lost(model: Callable[[], Layers]) -> None:
    eager = model()
    jitted = dsjit.jit(copy.deepcopy(eager))
    play(jitted, eager, DEPTHS + DEPTHS[::-1])
    assert eager.rounds == jitted.rounds


@pytest.mark.parametrize("model", [Break, ReturnInside, BranchOnTheCount])
def test_what_changes_between_calls_is_seen_behind_a_shared_exit(model: Callable[[], Layers]) -> None:
    eager = model()
    own = copy.deepcopy(eager)
    jitted = dsjit.jit(own)
    play(jitted, eager, DEPTHS)
    for each in (eager, own):
        each.scale = 3.0
    play(jitted, eager, DEPTHS)
    for each in (eager, own):
        each.layers[2] = copy.deepcopy(eager.layers[4])
        each.heads[1] = copy.deepcopy(eager.heads[0])
    play(jitted, eager, DEPTHS)


@pytest.mark.parametrize("model", [Break, ReturnInside, WorkAfterwards, IndexByTheCount])
def test_gradients_are_eagers(model: Callable[[], Layers]) -> None:
    eager = model()
    own = copy.deepcopy(eager)
    jitted = dsjit.jit(own)
    for depth in DEPTHS:
        for called in (eager, jitted):
            called.zero_grad()
            result = called(torch.linspace(-1, 1, 2 * WIDTH).view(2, WIDTH), limit_for(depth))
            (result[0] if isinstance(result, tuple) else result).sum().backward()
        for mine, theirs in zip(own.parameters(), eager.parameters(), strict=True):
            assert_same(mine.grad, theirs.grad)


@pytest.mark.parametrize("model", [Break, ReturnInside, WorkAfterwards, BranchOnTheCount])
def test_open_sizes(model: Callable[[], Layers]) -> None:
    eager = model()
    jitted = dsjit.jit(copy.deepcopy(eager), dynamic=True)
    for rows, depth in zip((2, 3, 5, 4, 2, 7, 3, 9, 4, 6, 5, 8), DEPTHS, strict=True):
        x = torch.linspace(-1, 1, rows * WIDTH).view(rows, WIDTH)
        with torch.no_grad():
            assert_same(jitted(x, limit_for(depth)), eager(x, limit_for(depth)))


class LongIndex(nn.Module):
    """More depths than outcomes that one look may have."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ParameterList(nn.Parameter(torch.tensor(0.1 * number)) for number in range(24))

    def forward(self, x: Tensor, limit: Tensor) -> Any:
        count = 0
        for step in self.steps:
            x = x * (1 - step)
            if x.sum() < limit:
                break
            count += 1
        return x * self.steps[min(count, 23)], count


def test_an_index_after_the_loop_is_no_look_that_sees_everything() -> None:
    eager = LongIndex()
    jitted = dsjit.jit(copy.deepcopy(eager))
    with torch.no_grad():
        x = torch.full((3,), 2.0)
        sums = [float(x.sum())]
        for step in eager.steps:
            sums.append(sums[-1] * (1 - float(step)))
        for limit in (*sums[::-1], *sums):
            assert_same(jitted(x, torch.tensor(limit)), eager(x, torch.tensor(limit)))
    assert counters_of(jitted).calls_eager == 0
