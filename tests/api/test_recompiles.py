"""The limit on programs, and what is told of recompiles: which guard failed, what changed, where it was read."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch

import dsjit
from tests.api.checks import counters_of

X = torch.ones(3)


def test_the_warning_at_the_limit_names_what_changed_and_what_to_do() -> None:
    jitted = dsjit.jit(lambda x, n: x * n, recompile_limit=1)
    with pytest.warns(dsjit.DsjitWarning) as caught:
        for n in (1, 2, 3):
            jitted(X, n)
    [message] = [str(each.message) for each in caught]
    assert "the limit of 1 programs is reached" in message
    assert "args[1]: was 1, now 2" in message
    assert "pass it as a tensor" in message and "raise recompile_limit" in message


def test_the_warning_at_the_limit_names_the_line_that_read_what_changed() -> None:
    class Config:
        scale = 0

    def read(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        return y * config.scale

    config = Config()
    config.scale = 1
    jitted = dsjit.jit(read, recompile_limit=1)
    jitted(X)
    config.scale = 2
    with pytest.warns(dsjit.DsjitWarning, match=rf"\(read at .*:{read.__code__.co_firstlineno + 2}\)"):
        jitted(X)


def test_sizes_at_the_limit_are_told_to_be_left_open() -> None:
    jitted = dsjit.jit(lambda x: x * 2, recompile_limit=1, dynamic=False)
    jitted(X)
    with pytest.warns(dsjit.DsjitWarning, match=r"shape \(3,\).*shape \(4,\).*dynamic=True, dsjit.mark_dynamic"):
        jitted(torch.ones(4))


@pytest.mark.parametrize("options", [{"at_recompile_limit": "raise"}, {"fullgraph": True}])
def test_the_limit_may_raise(options: dict[str, Any]) -> None:
    ran: list[int] = []
    jitted = dsjit.jit(lambda x, n: ran.append(n) or x.repeat(n), recompile_limit=2, **options)
    for n in (1, 2):
        jitted(X, n)
    for _ in range(2):
        with pytest.raises(dsjit.RecompileError, match=r"fits no program: the limit of 2.*args\[1\]: was 2, now 3"):
            jitted(X, 3)
    assert ran == [1, 2]
    assert torch.equal(jitted(X, 2), X.repeat(2))
    assert counters_of(jitted).calls_eager == 0


def test_stats_count_recompiles_and_their_causes() -> None:
    dsjit.reset_stats()
    jitted = dsjit.jit(lambda x, n: x if x.sum() < n else -x)
    jitted(X, 9)
    jitted(X * 9, 9)
    jitted(X, 8)
    jitted(X, 8)
    stats = dsjit.stats()
    assert stats.recompiles == 2
    outcome, number = stats.total.recompile_causes
    assert outcome.startswith("the truth of a tensor is False for the first time (at ")
    assert number == "args[1]: was 9, now 8"
    assert "recompiled 1x: args[1]: was 9, now 8" in str(stats)
    dsjit.reset_stats()
    assert dsjit.stats().recompiles == 0 and not dsjit.stats().total.recompile_causes


def test_calls_over_the_limit_do_not_pay_for_the_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    jitted = dsjit.jit(lambda x, n: x * n, recompile_limit=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jitted(X, 1)
        jitted(X, 2)
    monkeypatch.setattr("dsjit.api.jitted.find_cause", lambda *arguments: pytest.fail("explained again"))
    jitted(X, 3)
    assert counters_of(jitted).calls_eager == 2


def test_threads_that_miss_together_trace_once() -> None:
    entered, go = threading.Event(), threading.Event()

    def slow(x: torch.Tensor) -> torch.Tensor:
        entered.set()
        go.wait(10)
        return x + 1

    jitted = dsjit.jit(slow)
    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(jitted(X))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert entered.wait(10)
    go.set()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, X + 1) for each in results) and len(results) == 4
    assert counters_of(jitted).traces == 1


def test_a_thread_that_is_awaited_inside_a_traced_call_does_not_wait_for_it() -> None:
    def f(x: torch.Tensor, deep: bool) -> torch.Tensor:
        if deep:
            found: list[torch.Tensor] = []
            thread = threading.Thread(target=lambda: found.append(jitted(x, False)))
            thread.start()
            thread.join(10)
            return found[0] + 1
        return x * 2

    jitted = dsjit.jit(f)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(jitted(X, True), X * 2 + 1)
    assert "another thread is tracing the function" in counters_of(jitted).eager_reasons
