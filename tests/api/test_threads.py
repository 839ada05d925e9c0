"""Calls of one jitted function from several threads give what eager gives, whatever the shapes, values and ways."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import dsjit
from dsjit.errors import DsjitWarning
from tests.api.checks import counters_of

THREADS = 8
ROUNDS = 24


def run_threads(work: Callable[[int], None]) -> None:
    """Run `work(number)` in THREADS threads at once; what one raises is raised."""
    failures: list[BaseException] = []
    begin = threading.Barrier(THREADS)

    def guarded(number: int) -> None:
        begin.wait()
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(THREADS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DsjitWarning)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def test_shapes_and_outcomes_differ_between_threads() -> None:
    def f(x: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = (x * n).sum(-1)
        while y.max() > 4:
            y = y / 2
        return (y, x + 1) if y[0] > 0 else (-y, x - 1)

    jitted = dsjit.jit(f)

    def work(number: int) -> None:
        for round_ in range(ROUNDS):
            x = torch.full((2 + (number + round_) % 5, 3), float((number * 7 + round_) % 11 - 5))
            n = 1 + number % 2
            for found, expected in zip(jitted(x, n), f(x, n), strict=True):
                assert torch.equal(found, expected)

    run_threads(work)
    assert counters_of(jitted).calls_compiled > THREADS


def test_each_thread_has_its_own_module() -> None:
    def make(number: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2 + number % 2)).eval()

    modules = [make(number) for number in range(THREADS)]
    originals = [[p.detach().clone() for p in module.parameters()] for module in modules]
    for module in modules:
        dsjit.jit(module)

    def work(number: int) -> None:
        first, first_bias, second, second_bias = originals[number]
        with torch.no_grad():
            for rows in range(1, 9):
                x = torch.randn(rows, 4)
                expected = (x @ first.T + first_bias).relu() @ second.T + second_bias
                torch.testing.assert_close(modules[number](x), expected)

    run_threads(work)


def test_what_a_call_writes_is_its_own() -> None:
    class Log:
        def __init__(self) -> None:
            self.calls = 0
            self.last: Any = None
            self.history: list[float] = []

    def f(x: torch.Tensor, log: Log) -> torch.Tensor:
        log.calls += 1
        log.last = x * 2
        log.history.append(log.calls)
        return x.mul_(3) + 1

    jitted = dsjit.jit(f)
    logs = [Log() for _ in range(THREADS)]

    def work(number: int) -> None:
        for round_ in range(ROUNDS):
            x = torch.full((4,), float(number + round_))
            result = jitted(x, logs[number])
            assert torch.equal(x, torch.full((4,), 3.0 * (number + round_)))
            assert torch.equal(result, x + 1)
            assert torch.equal(logs[number].last, torch.full((4,), 2.0 * (number + round_)))

    run_threads(work)
    for log in logs:
        assert log.calls == ROUNDS and log.history == list(range(1, ROUNDS + 1))


def test_threads_that_seed_and_trace_at_once_leave_the_generator_alone() -> None:
    lock = threading.Lock()  # the generator is one for all threads: eager code needs it, too

    def seeded(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def f(x: torch.Tensor) -> torch.Tensor:
            torch.manual_seed(seed)
            return x + torch.rand(4)

        return f

    def work(number: int) -> None:
        f = seeded(number)
        jitted = dsjit.jit(f)
        for _ in range(6):
            with lock:
                found, expected = jitted(torch.zeros(4)), f(torch.zeros(4))
            assert torch.equal(found, expected)

    run_threads(work)
    assert torch.random.default_generator is torch.default_generator
