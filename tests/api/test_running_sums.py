"""Numbers that a call takes out of tensors and adds to Python state are added by compiled calls, whatever they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dsjit


class Slotted:
    __slots__ = ("total",)


def attribute(state: Any, x: torch.Tensor) -> None:
    state.total += x.sum().item()


def product(state: Any, x: torch.Tensor) -> None:
    state.total += x.sum().item() * x.shape[0]


def twice(state: Any, x: torch.Tensor) -> None:
    state.total += x[0].item()
    state.total += 0.5
    state.total += x[1].item()


def difference(state: Any, x: torch.Tensor) -> None:
    state.total -= x.sum().item()


def item(state: Any, x: torch.Tensor) -> None:
    state.table["a"] += x.sum().item()
    state.table["b"] -= x[0].item()
    state.table["a"] += x[1].item()


def shared(state: Any, x: torch.Tensor) -> None:
    number = x.sum().item()
    state.total += number
    state.table["a"] += number
    state.last = number


SUMS: list[Callable[[Any, torch.Tensor], Any]] = [attribute, product, twice, difference, item, shared]


def returned(state: Any, x: torch.Tensor) -> Any:
    state.total += x.sum().item()
    return x * state.total


def kept(state: Any, x: torch.Tensor) -> Any:
    state.total = state.copy = state.total + x.sum().item()


def compared(state: Any, x: torch.Tensor) -> Any:
    state.total += x.sum().item()
    return x + 1 if state.total > 12 else x - 1


def reordered(state: Any, x: torch.Tensor) -> Any:
    state.total = x.sum().item() + state.total


OTHERS: list[Callable[[Any, torch.Tensor], Any]] = [returned, kept, compared, reordered]


def fresh(kind: str) -> Any:
    state: Any = SimpleNamespace() if kind == "namespace" else type("State", (), {})()
    state.total, state.table, state.last, state.copy = 0.25, defaultdict(float, a=0.1, b=0.2), 0.0, 0.0
    return state


def content(state: Any) -> Any:
    return state.total, dict(state.table), state.last, state.copy


def play(update: Callable[[Any, torch.Tensor], Any], kind: str) -> int:
    eager, compiled = fresh(kind), fresh(kind)
    jitted = dsjit.jit(lambda x: update(compiled, x))
    dsjit.reset_stats()
    with torch.no_grad():
        for round in range(6):
            x = torch.tensor([0.1, 0.7, 1 / 3], dtype=torch.float32) * (round + 1)
            expected, found = update(eager, x), jitted(x)
            assert content(eager) == content(compiled)
            assert type(compiled.total) is float
            assert (expected is None and found is None) or torch.equal(expected, found)
    assert dsjit.stats().total.calls_eager == 0
    return dsjit.stats().total.traces


@pytest.mark.parametrize("kind", ["object", "namespace"])
@pytest.mark.parametrize("update", SUMS)
def test_sums_take_one_trace(update: Callable[[Any, torch.Tensor], Any], kind: str) -> None:
    assert play(update, kind) == 1


@pytest.mark.parametrize("update", OTHERS)
def test_a_sum_that_is_seen_is_as_eager(update: Callable[[Any, torch.Tensor], Any]) -> None:
    assert play(update, "object") <= 6


def test_slots_are_added_to() -> None:
    state = Slotted()
    state.total = 0.5
    jitted = dsjit.jit(lambda x: attribute(state, x))
    dsjit.reset_stats()
    with torch.no_grad():
        for _ in range(4):
            jitted(torch.ones(2))
    assert state.total == 8.5
    assert dsjit.stats().total.traces == 1
