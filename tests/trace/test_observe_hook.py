"""The profile hook: tells of everything new once, of what it is asked to again, and of nothing while muted."""

from __future__ import annotations

import sys
import threading
import types
from typing import Any

import pytest

from dsjit.trace.reads.profile_hook import ProfileHook


def callee() -> int:
    return len([1])


@pytest.fixture(params=[True, False], ids=["native", "python"])
def native(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Told:
    def __init__(self, native: bool, again: bool) -> None:
        self.codes: list[str] = []
        self.builtins: list[str] = []
        self.errors: list[Exception] = []
        self.again = again
        self.hook = ProfileHook(self.on_code, self.on_builtin, self.errors.append, native)

    def on_code(self, frame: types.FrameType) -> bool:
        self.codes.append(frame.f_code.co_name)
        return not self.again

    def on_builtin(self, function: Any, frame: types.FrameType) -> bool:
        self.builtins.append(f"{function.__name__} in {frame.f_code.co_name}")
        return not self.again


@pytest.mark.parametrize(("again", "times"), [(False, 1), (True, 3)])
def test_code_is_told_once_or_each_time(native: bool, again: bool, times: int) -> None:
    told = Told(native, again)
    told.hook.start()
    for _ in range(3):
        callee()
    told.hook.stop()
    assert told.codes.count("callee") == times
    assert told.builtins.count("len in callee") == (times if native else 3)
    assert sys.getprofile() is None


def test_nothing_is_told_of_code_that_is_not_the_users(native: bool) -> None:
    """Neither where the hook goes and comes, nor where it stays (from CPython 3.12 on, and without the native one)."""
    told = Told(native, again=True)
    pause, resume = told.hook.pauses()
    told.hook.start()
    pause()
    callee()
    resume()
    assert "callee" not in told.codes and "len in callee" not in told.builtins
    callee()
    told.hook.stop()
    assert "callee" in told.codes and "len in callee" in told.builtins


def test_a_pause_leaves_what_is_muted_as_it_is(native: bool) -> None:
    told = Told(native, again=True)
    pause, resume = told.hook.pauses()
    told.hook.start()
    told.hook.muted[0] |= 1
    pause()
    resume()
    callee()
    told.hook.muted[0] &= ~1
    told.hook.stop()
    assert "callee" not in told.codes


def test_nothing_is_told_while_muted(native: bool) -> None:
    told = Told(native, again=True)
    told.hook.start()
    told.hook.muted[0] = 1
    callee()
    told.hook.muted[0] = 0
    told.hook.stop()
    assert "callee" not in told.codes


def test_other_threads_are_not_told_of(native: bool) -> None:
    told = Told(native, again=True)
    thread = threading.Thread(target=callee)
    told.hook.start()
    thread.start()
    thread.join()
    told.hook.stop()
    assert "callee" not in told.codes


def test_an_exception_in_the_hook_does_not_reach_the_caller(native: bool) -> None:
    def fail(frame: types.FrameType) -> bool:
        if frame.f_code is callee.__code__:
            raise ZeroDivisionError
        return True

    errors: list[Exception] = []
    hook = ProfileHook(fail, lambda function, frame: True, errors.append, native)
    hook.start()
    try:
        assert callee() == 1
    finally:
        hook.stop()
    assert [type(error) for error in errors] == [ZeroDivisionError]


def test_an_interrupt_in_the_hook_reaches_the_caller(native: bool) -> None:
    def fail(frame: types.FrameType) -> bool:
        if frame.f_code is callee.__code__:
            raise KeyboardInterrupt
        return True

    hook = ProfileHook(fail, lambda function, frame: True, lambda error: None, native)
    hook.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            callee()
        assert callee() == 1  # the hook has ended
    finally:
        hook.stop()
