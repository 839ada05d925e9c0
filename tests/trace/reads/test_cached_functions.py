"""Functions with a cache: their answers are guarded, and asked for again."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import dsjit
from tests.api.checks import counters_of

X = torch.arange(4.0)
FACTORS = {"a": 2.0}
ASKED: list[str] = []


@functools.lru_cache
def factor(name: str, scale: float = 1.0) -> float:
    ASKED.append(name)
    return FACTORS[name] * scale


@functools.cache
def pair(size: int) -> tuple[torch.Tensor, int]:
    return torch.ones(size), size


@pytest.fixture(autouse=True)
def fresh() -> None:
    FACTORS["a"] = 2.0
    factor.cache_clear()
    ASKED.clear()


def scaled(x: torch.Tensor) -> torch.Tensor:
    return x * factor("a", scale=3.0)


def test_a_call_that_finds_its_answer_in_the_cache_is_compiled() -> None:
    factor("a", scale=3.0)
    jitted = dsjit.jit(scaled)
    for _ in range(4):
        assert torch.equal(jitted(X), X * 6)
    assert counters_of(jitted).calls_compiled == 3
    assert ASKED == ["a"]


def test_a_call_that_fills_the_cache_runs_eagerly_and_the_next_one_is_traced() -> None:
    jitted = dsjit.jit(scaled)
    with pytest.warns(dsjit.DsjitWarning, match="fills the cache of a function"):
        assert torch.equal(jitted(X), X * 6)
    for _ in range(3):
        assert torch.equal(jitted(X), X * 6)
    assert counters_of(jitted).calls_compiled == 2
    assert ASKED == ["a"]


def test_a_cache_that_was_cleared_is_filled_anew_and_another_answer_is_noticed() -> None:
    factor("a", scale=3.0)
    jitted = dsjit.jit(scaled)
    jitted(X), jitted(X)
    FACTORS["a"] = 5.0
    assert torch.equal(jitted(X), X * 6), "as eager: the cache still holds the old answer"
    factor.cache_clear()
    with pytest.warns(dsjit.DsjitWarning, match="fills the cache of a function"):
        assert torch.equal(jitted(X), X * 15)
    for _ in range(3):
        assert torch.equal(jitted(X), X * 15)
    assert ASKED == ["a", "a"]
    assert counters_of(jitted).calls_compiled == 4


def test_a_function_that_is_replaced_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    factor("a", scale=3.0)
    jitted = dsjit.jit(scaled)
    jitted(X), jitted(X)
    monkeypatch.setitem(globals(), "factor", lambda name, scale: 1.0)
    assert torch.equal(jitted(X), X)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x + pair(4)[0], "a tensor of unknown origin is used"),
        (lambda x: x * factor.cache_info().hits, "uses cache_info of a function with a cache"),
        (lambda x, inside={"f": factor}: x * inside["f"]("a"), "whose cache cannot be guarded"),
    ],
    ids=["tensors in a tuple", "statistics", "in a container"],
)
def test_what_cannot_be_guarded_runs_eagerly(function: Any, reason: str) -> None:
    pair(4), factor("a")
    jitted = dsjit.jit(function)
    with pytest.warns(dsjit.DsjitWarning, match=reason):
        found = jitted(X)
    assert torch.equal(found, function(X))
    assert counters_of(jitted).calls_compiled == 0


@pytest.mark.parametrize("raises", [False, True])
def test_the_functions_are_back_in_their_places_afterwards(raises: bool) -> None:
    factor("a", scale=3.0)
    original = factor

    def function(x: torch.Tensor) -> torch.Tensor:
        if raises:
            raise ValueError(scaled(x))
        return scaled(x)

    jitted = dsjit.jit(function)
    if raises:
        with pytest.raises(ValueError, match="tensor"):
            jitted(X)
    else:
        jitted(X)
    assert globals()["factor"] is original
    assert type(original) is functools._lru_cache_wrapper
