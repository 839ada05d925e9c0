"""The harness finds every kind of difference: compilers that are wrong in one way each are caught by it."""

from __future__ import annotations

import logging
import random
import sys
import types
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dsjit
from dsjit.api.jitted import Jitted
from tests.conformance.harness import Play, judge, program
from tests.conformance.tensors import whole

Function = Callable[..., Any]


@program()
def everything_at_once(play: Play) -> None:
    state = SimpleNamespace(calls=0, seen=[])

    def f(x: torch.Tensor) -> Any:
        if x.dim() == 2:
            raise ValueError("two dimensions")
        return x + 1, x[1:], x

    jitted = play.jit(f)
    play.watch(state=state)
    play(jitted, whole(4))
    play(jitted, whole(4))
    play(jitted, whole(2, 2))


class Fake(Jitted):
    """Calls `call` in place of `target`; the harness looks through it, as through every jitted function."""

    def __init__(self, target: Function, call: Function) -> None:
        self._target, self._call = target, call

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


def changing(change: Callable[[Any, Any], Any]) -> Callable[..., Function]:
    """A compiler that is right, but for what `change(result, x)` makes of each result."""

    def jit(f: Function, **options: Any) -> Function:
        return Fake(f, lambda x: change(f(x), x))

    return jit


def stale(f: Function, **options: Any) -> Function:
    first: list[Any] = []

    def call(x: torch.Tensor) -> Any:
        if not first or x.dim() == 2:
            first.append(f(x))
        return first[0]

    return Fake(f, call)


def cell_of(function: Function, name: str) -> Any:
    return (function.__closure__ or ())[function.__code__.co_freevars.index(name)].cell_contents


def with_side_effect(effect: Callable[[], object]) -> Callable[..., Function]:
    return changing(lambda result, x: (effect(), result)[1])


def raising(make: Callable[[], Exception]) -> Callable[..., Function]:
    def jit(f: Function, **options: Any) -> Function:
        def call(x: torch.Tensor) -> Any:
            try:
                return f(x)
            except ValueError:
                raise make() from None

        return Fake(f, call)

    return jit


def leave_a_profile_hook() -> None:
    sys.setprofile(lambda *event: None)


WRONG: dict[str, tuple[Callable[..., Function], str]] = {
    "a value": (changing(lambda r, x: (r[0] + 1, *r[1:])), "result[0]: values"),
    "the sign of a zero": (changing(lambda r, x: (torch.where(r[0] == 0, -0.0, r[0]), *r[1:])), "result[0]: values"),
    "the type of a container": (changing(lambda r, x: list(r)), "result: builtins.list"),
    "the dtype": (changing(lambda r, x: (r[0].double(), *r[1:])), "dtype is torch.float64"),
    "the strides": (changing(lambda r, x: (torch.stack([r[0]] * 2, 1)[:, 0], *r[1:])), "strides is (2,)"),
    "the storage offset": (changing(lambda r, x: (torch.cat([r[0][:1], r[0]])[1:], *r[1:])), "storage offset is 1"),
    "a copy in place of a view": (changing(lambda r, x: (r[0], r[1].clone(), r[2])), "storage is"),
    "a view in place of the object": (changing(lambda r, x: (*r[:2], x[:])), "result[2]"),
    "shared memory of results": (changing(lambda r, x: (r[0], r[0][1:], r[2])), "storage is"),
    "gradients": (changing(lambda r, x: (r[0].requires_grad_(), *r[1:])), "requires_grad is True"),
    "a mutated argument": (changing(lambda r, x: (x.zero_(), r)[1]), "result[2]: values"),
    "an attribute on an argument": (changing(lambda r, x: (setattr(x, "note", 1), r)[1]), "result[2].note"),
    "a result of an earlier call": (stale, "object is"),
    "printed text": (with_side_effect(lambda: print("compiled")), "printed"),
    "text on the other stream": (with_side_effect(lambda: print("compiled", file=sys.stderr)), "compiled\\r\\n"),
    "a log record": (with_side_effect(lambda: logging.info("compiled")), "logged[0]"),
    "a warning": (with_side_effect(lambda: warnings.warn("compiled", stacklevel=1)), "warned[0]"),
    "a drawn number": (with_side_effect(lambda: torch.rand(1)), "torch random state"),
    "a number of Python": (with_side_effect(random.random), "python random state"),
    "the grad mode": (with_side_effect(lambda: torch.set_grad_enabled(True)), "grad mode"),
    "the default dtype": (with_side_effect(lambda: torch.set_default_dtype(torch.float64)), "default dtype"),
    "a hook left behind": (with_side_effect(leave_a_profile_hook), "profile hook"),
    "the type of an exception": (raising(lambda: TypeError("two dimensions")), "error: builtins.TypeError"),
    "the message of an exception": (raising(lambda: ValueError("2 dimensions")), "error: builtins.ValueError"),
    "the lines of a traceback": (raising(lambda: ValueError("two dimensions")), "error.lines"),
    "a lost exception": (lambda f, **options: Fake(f, lambda x: f(x.flatten())), "error: missing"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_compiler_that_is_wrong_in_one_way_is_caught(kind: str) -> None:
    jit, expected = WRONG[kind]
    profiler = sys.getprofile()
    try:
        verdict = judge(everything_at_once, jit)
    finally:
        sys.setprofile(profiler)
    assert any(expected in line for line in verdict.differences), verdict.differences


def test_a_compiler_that_does_nothing_is_equal_but_not_compiled() -> None:
    verdict = judge(everything_at_once, lambda f, **options: f)
    assert verdict.differences == ()
    assert not verdict.compiled
    assert verdict.reason.endswith("no program ran")


def test_the_compiler_itself_is_equal_and_compiled() -> None:
    @program()
    def plain(play: Play) -> None:
        f = play.jit(lambda x: x * 2)
        for _ in range(3):
            play(f, whole(3))

    verdict = judge(plain)
    assert verdict.differences == ()
    assert verdict.compiled
    assert (verdict.ways.compiled, verdict.ways.traces, verdict.ways.eager) == (2, 1, 0)


def test_more_traces_than_claimed_and_eager_calls_are_told() -> None:
    @program(traces=1)
    def sizes(play: Play) -> None:
        f = play.jit(lambda x: x * 2, dynamic=False)
        for width in (3, 4, 3, 4):
            play(f, whole(width))

    @program()
    def disabled(play: Play) -> None:
        play(play.jit(lambda x: x * 2, disable=True), whole(3))

    assert judge(sizes).reason == "2 traces; 1 allowed"
    assert judge(disabled).reason.endswith("eager: compilation is disabled")


@pytest.mark.parametrize("change", ["attribute", "list", "cell", "global", "class", "default"])
def test_state_that_a_compiler_forgets_to_change_is_missed(change: str) -> None:
    @program()
    def stateful(play: Play) -> None:
        state, calls = SimpleNamespace(calls=0, seen=[]), 0

        class Counter:
            total = 0

        def f(x: torch.Tensor, kept: list[int] = []) -> torch.Tensor:  # noqa: B006
            global COUNT
            nonlocal calls
            state.calls += 1
            state.seen.append(x)
            calls += 1
            COUNT = calls
            Counter.total += 1
            kept.append(1)
            return x

        jitted = play.jit(f)
        play(jitted, whole(2))
        play(jitted, whole(2))

    def forgetful(f: types.FunctionType, **options: Any) -> Function:
        def call(x: torch.Tensor) -> Any:
            result = f(x)
            if change == "attribute":
                cell_of(f, "state").calls = 0
            elif change == "list":
                cell_of(f, "state").seen.pop()
            elif change == "cell":
                (f.__closure__ or ())[f.__code__.co_freevars.index("calls")].cell_contents = 0
            elif change == "global":
                f.__globals__["COUNT"] = -1
            elif change == "class":
                cell_of(f, "Counter").total = 0
            else:
                (f.__defaults__ or ([],))[0].clear()
            return result

        return Fake(f, call)

    assert judge(stateful, lambda f, **options: f).differences == ()
    assert judge(stateful, forgetful).differences


def test_each_play_starts_afresh() -> None:
    @program()
    def seeded(play: Play) -> None:
        play(play.jit(lambda x: x + torch.rand(3)), whole(3))

    torch.manual_seed(1234)
    before = torch.get_rng_state()
    assert judge(seeded, dsjit.disable).differences == ()
    assert torch.equal(torch.get_rng_state(), before)
