"""Stances: how all jitted objects run, for the process, for a block, for a function."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import dsjit
from dsjit.api.stance import Holder, Stances
from dsjit.config import STANCE_ROWS
from tests.api.checks import counters_of

X = torch.arange(6.0)
STANCES = [row.name for row in STANCE_ROWS]


@pytest.fixture(autouse=True)
def default_afterwards() -> Iterator[None]:
    yield
    dsjit.set_stance("default")


def scaled() -> Any:
    return dsjit.jit(lambda x, n: x * n)


def test_eager_runs_everything_eagerly_and_traces_nothing() -> None:
    f = scaled()
    f(X, 2)
    with dsjit.set_stance("eager"):
        assert torch.equal(f(X, 2), X * 2)
        assert torch.equal(f(X, 3), X * 3)
    counters = counters_of(f)
    assert (counters.traces, counters.calls_compiled, counters.calls_eager) == (1, 0, 2)
    assert counters.eager_reasons == {"the stance is eager": 2}


def test_eager_guards_nothing() -> None:
    class Key:
        def __hash__(self) -> int:
            asked.append(self)
            return 1

    asked: list[Any] = []
    f = dsjit.jit(lambda table: table["x"] + 1)
    f({"x": X})
    table = {"x": X, Key(): 0}
    asked.clear()
    with dsjit.set_stance("eager"):
        f(table)
    assert asked == []


def test_eager_on_recompile_uses_the_programs_that_there_are() -> None:
    f = scaled()
    f(X, 2)
    with dsjit.set_stance("eager_on_recompile"):
        assert torch.equal(f(X, 2), X * 2)
        assert torch.equal(f(X, 3), X * 3)
    counters = counters_of(f)
    assert (counters.traces, counters.calls_compiled, counters.calls_eager) == (1, 1, 1)


def test_fail_on_recompile_names_the_guard_what_changed_and_the_lines() -> None:
    class Config:
        scale = 2.0

    def read(x: torch.Tensor) -> torch.Tensor:
        return x * config.scale

    config = Config()
    config.scale = 3.0
    f = dsjit.jit(read)
    f(X)
    with dsjit.set_stance("fail_on_recompile"):
        assert torch.equal(f(X), X * 3)
        config.scale = 4.0
        with pytest.raises(dsjit.RecompileError) as raised:
            f(X)
    read_at = read.__code__.co_firstlineno + 1
    assert "config'].scale: was 3.0, now 4.0" in str(raised.value)
    assert f"(read at {__file__}:{read_at})" in str(raised.value)
    assert f"called at {__file__}" in str(raised.value)
    assert torch.equal(f(X), X * 4)


def test_fail_on_recompile_refuses_a_first_call_before_it_runs() -> None:
    ran: list[int] = []
    f = dsjit.jit(lambda x: ran.append(1) or x + 1)
    with dsjit.set_stance("fail_on_recompile"), pytest.raises(dsjit.RecompileError, match="for the first time"):
        f(X)
    assert ran == []


def test_fail_on_recompile_refuses_an_outcome_that_was_never_seen() -> None:
    f = dsjit.jit(lambda x: x if x.sum() > 0 else -x)
    f(X)
    with dsjit.set_stance("fail_on_recompile"):
        f(X + 1)
        with pytest.raises(dsjit.RecompileError, match=r"the truth of a tensor is False for the first time"):
            f(-X)


def test_fail_on_recompile_lets_run_eagerly_what_is_known_to() -> None:
    f = dsjit.jit(lambda x: x.numpy().sum())
    with pytest.warns(dsjit.DsjitWarning):
        f(X)
    with dsjit.set_stance("fail_on_recompile"):
        assert f(X) == 15


def test_fail_on_eager_raises_where_a_call_would_run_eagerly() -> None:
    good, bad = scaled(), dsjit.jit(lambda x: x.numpy().sum())
    with dsjit.set_stance("fail_on_eager"):
        good(X, 2)
        good(X, 2)
        for _ in range(2):
            with pytest.raises(dsjit.CaptureError, match="numpy"):
                bad(X)
    assert counters_of(good).calls_compiled == 1


def test_fail_on_eager_raises_at_the_limit() -> None:
    f = dsjit.jit(lambda x, n: x * n, recompile_limit=1)
    with dsjit.set_stance("fail_on_eager"):
        f(X, 1)
        with pytest.raises(dsjit.RecompileError, match=r"args\[1\]: was 1, now 2"):
            f(X, 2)


def test_a_call_sets_the_stance_of_the_process_until_the_next() -> None:
    f = scaled()
    dsjit.set_stance("eager")
    f(X, 2)
    thread = threading.Thread(target=f, args=(X, 2))
    thread.start()
    thread.join()
    assert counters_of(f).calls_eager == 2
    dsjit.set_stance("default")
    f(X, 2)
    assert counters_of(f).traces == 1


def test_a_function_runs_in_the_stance_that_decorates_it() -> None:
    f = scaled()

    @dsjit.set_stance("eager")
    def plain(n: int) -> torch.Tensor:
        """Of the user's."""
        return f(X, n)

    assert counters_of(f).calls_eager == 0
    f(X, 1)
    assert counters_of(f).traces == 1, "decorating alone changes nothing"
    assert torch.equal(plain(2), X * 2)
    assert (plain.__name__, plain.__doc__) == ("plain", "Of the user's.")
    f(X, 2)
    assert (counters_of(f).traces, counters_of(f).calls_eager) == (2, 1)


def test_blocks_nest_and_give_back_what_was_even_when_they_raise() -> None:
    f = scaled()
    f(X, 1)
    with dsjit.set_stance("eager"):
        with pytest.raises(ZeroDivisionError), dsjit.set_stance("fail_on_recompile"):
            assert torch.equal(f(X, 1), X)
            1 / 0  # noqa: B018
        f(X, 1)
    f(X, 1)
    assert (counters_of(f).calls_compiled, counters_of(f).calls_eager) == (2, 1)


def test_a_block_holds_for_its_own_thread() -> None:
    f = scaled()
    f(X, 1)
    with dsjit.set_stance("eager"):
        thread = threading.Thread(target=f, args=(X, 1))
        thread.start()
        thread.join()
    assert (counters_of(f).calls_compiled, counters_of(f).calls_eager) == (1, 0)


def test_threads_that_take_blocks_at_once_leave_the_process_as_it_was() -> None:
    failures: list[str] = []

    def work(name: str) -> None:
        for _ in range(300):
            with dsjit.set_stance(name):
                if stances.current() != name:
                    failures.append(name)

    stances = dsjit.api.entry.session().stances
    threads = [threading.Thread(target=work, args=(name,)) for name in STANCES * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert (stances.current(), stances.eager) == ("default", 0)


def test_what_is_set_for_good_hides_what_was_set_before() -> None:
    stances = Stances("eager")
    block = Holder("fail_on_eager")
    stances.set(block)
    stances.set(Holder("eager"))
    stances.take_back(block)
    assert (stances.current(), stances.eager) == ("eager", 2)
    for _ in range(100):
        stances.set(Holder("default"))
    assert (stances.current(), stances.eager) == ("default", 0)
    assert len(stances._set) <= 2


def test_a_jitted_function_that_sets_a_stance_runs_eagerly() -> None:
    inner = scaled()

    def outer(x: torch.Tensor) -> torch.Tensor:
        with dsjit.set_stance("eager"):
            return inner(x, 2) + 1

    f = dsjit.jit(outer)
    with pytest.warns(dsjit.DsjitWarning, match="sets a stance"):
        for _ in range(2):
            assert torch.equal(f(X), X * 2 + 1)
    assert counters_of(f).calls_eager == 2


@pytest.mark.parametrize("name", ["force_eager", "", None, 1])
def test_what_is_no_stance_is_refused(name: Any) -> None:
    with pytest.raises(dsjit.OptionError, match="there is no stance"):
        dsjit.set_stance(name)


def test_a_generator_function_is_not_decorated() -> None:
    def rows(x: torch.Tensor) -> Iterator[torch.Tensor]:
        yield from x

    with pytest.raises(dsjit.UnsupportedCallableError, match="in its body"):
        dsjit.set_stance("eager")(rows)
    assert dsjit.api.entry.session().stances.current() == "default"


@pytest.mark.parametrize("name", STANCES)
def test_results_are_eagers_under_every_stance_that_lets_calls_run(name: str) -> None:
    def f(x: torch.Tensor, log: list[int]) -> torch.Tensor:
        log.append(1)
        return x.mul_(2) + 1

    jitted: Callable[..., Any] = dsjit.jit(f)
    jitted(X.clone(), [])
    mine, theirs = (X.clone(), []), (X.clone(), [])
    with dsjit.set_stance(name):
        found = jitted(*mine)
    assert torch.equal(found, f(*theirs))
    assert torch.equal(mine[0], theirs[0]) and mine[1] == theirs[1]
