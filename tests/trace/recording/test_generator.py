"""Seeding, saving and restoring the random generator are parts of the program."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import dsjit
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
    assert told == ["seed all", "get", "set"]
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


@pytest.fixture
def gpus_generator(monkeypatch: pytest.MonkeyPatch) -> torch.Generator:
    """One that stands for the generator of a GPU."""
    found = torch.Generator()
    monkeypatch.setattr(torch.cuda, "default_generators", (found,))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda.random, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return found


def test_what_seeds_all_generators_seeds_those_of_gpus_in_compiled_calls_too(gpus_generator: torch.Generator) -> None:
    jitted = dsjit.jit(seeded)
    for _ in range(3):
        gpus_generator.manual_seed(11)
        jitted(torch.zeros(4))
        assert gpus_generator.initial_seed() == 3
    assert jitted.counters.calls_compiled == 2


def seeds_a_gpu(x: torch.Tensor) -> torch.Tensor:
    torch.cuda.manual_seed_all(5)
    return x + 1


def reads_a_gpus_state(x: torch.Tensor) -> torch.Tensor:
    return x + torch.cuda.default_generators[0].get_state().sum()


@pytest.mark.parametrize("function", [seeds_a_gpu, reads_a_gpus_state])
def test_the_generator_of_a_gpu_on_its_own_makes_a_call_eager(
    function: Callable[[torch.Tensor], torch.Tensor], gpus_generator: torch.Generator
) -> None:
    jitted = dsjit.jit(function)
    with pytest.warns(dsjit.DsjitWarning, match="generator"):
        for _ in range(2):
            jitted(torch.zeros(4))
    assert not jitted.counters.calls_compiled


def test_a_call_that_goes_another_way_has_drawn_nothing_on_a_gpu(gpus_generator: torch.Generator) -> None:
    def drawn(x: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(4)
        return x + noise if x.sum() > 0 else x - noise

    jitted = dsjit.jit(drawn)
    jitted(torch.ones(4))
    jitted(torch.ones(4))
    before = gpus_generator.get_state()
    seen: list[torch.Tensor] = []
    set_state = torch.Generator.set_state

    class Told(torch.Generator):
        def set_state(self, state: torch.Tensor) -> torch.Generator:
            seen.append(state)
            return set_state(self, state)

    torch.cuda.default_generators = (Told(),)  # type: ignore[attr-defined]
    torch.cuda.default_generators[0].manual_seed(gpus_generator.initial_seed())
    jitted(-torch.ones(4))
    assert len(seen) == 1 and seen[0].shape == before.shape
