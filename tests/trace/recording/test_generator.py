"""Seeding, saving and restoring the random generator are parts of the program."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dsjit.trace.recording.generator import GeneratorWatch
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


def test_watches_of_two_threads_hear_their_own_and_leave_no_trace_in_any_order() -> None:
    told: dict[str, list[Any]] = {"first": [], "second": []}
    real = torch.random.default_generator
    entered, left = threading.Event(), threading.Event()

    def first() -> None:
        with GeneratorWatch(lambda what, value: told["first"].append(value)):
            entered.wait(10)
            torch.manual_seed(1)
        left.set()

    def second() -> None:
        with GeneratorWatch(lambda what, value: told["second"].append(value)):
            entered.set()
            left.wait(10)
            torch.manual_seed(2)

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == {"first": [1], "second": [2]}
    assert torch.random.default_generator is real
