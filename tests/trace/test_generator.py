"""Seeding, saving and restoring the random generator are parts of the program."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dsjit.trace.generator import GeneratorWatch
from tests.api.checks import check


def seeded(x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(3)
    return x + torch.rand(4)


def saved_and_restored(x: torch.Tensor) -> torch.Tensor:
    state = torch.get_rng_state()
    first = torch.rand(4)
    torch.set_rng_state(state)
    return x + first - torch.rand(4)


def forked(x: torch.Tensor) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        inside = torch.rand(4)
    return x + inside * torch.rand(4)


@pytest.mark.parametrize("function", [seeded, saved_and_restored, forked])
def test_a_compiled_call_does_the_same_to_the_generator(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    check(function, torch.zeros(4), calls=3, exact=True)


def test_the_watch_tells_what_is_done_and_leaves_no_trace() -> None:
    told: list[str] = []
    real = torch.random.default_generator
    with GeneratorWatch(lambda what, value: told.append(what)):
        torch.manual_seed(1)
        torch.set_rng_state(torch.get_rng_state())
    assert told == ["seed", "get", "set"]
    assert torch.random.default_generator is real
