"""Calls that reach outside of the function, and torch's state: problems."""

from __future__ import annotations

import datetime
import io
import logging
import random
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import numpy
import pytest
import torch

from tests.trace.observing import ONES, observe

LOGGER = logging.getLogger("dsjit.test")
GENERATOR = random.Random(0)

PROBLEMS: dict[str, tuple[Callable[[], Any], str]] = {
    "time": (lambda: time.time(), "reads a clock"),
    "perf_counter": (lambda: time.perf_counter(), "reads a clock"),
    "datetime": (lambda: datetime.datetime.now(), "reads a clock"),
    "random": (lambda: random.random(), "draws from Python's random"),
    "randint": (lambda: random.randint(0, 3), "draws from Python's random"),
    "generator": (lambda: GENERATOR.random(), "draws from Python's random"),
    "uuid": (lambda: uuid.uuid4(), "makes a UUID"),
    "numpy random": (lambda: numpy.random.rand(), "draws from numpy.random"),
    "open": (lambda: open(__file__).close(), "opens a file"),
    "read_text": (lambda: FilePath(__file__).read_text(), "opens a file"),
    "print": (lambda: print("x"), "prints"),
    "warn": (lambda: warnings.warn("x", stacklevel=1), "warns"),
}


pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(("function", "reason"), PROBLEMS.values(), ids=list(PROBLEMS))
def test_calls_that_reach_outside_are_problems(
    function: Callable[[], Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = observe(function).problems
    assert reason in [problem.reason for problem in problems]


def test_warnings_may_pass() -> None:
    passing = {p.reason: p.passing for function, _ in PROBLEMS.values() for p in observe(function).problems}
    assert {reason for reason, passes in passing.items() if passes} == {"warns"}


def test_streams_in_memory_are_no_problem() -> None:
    assert observe(lambda: io.StringIO().write("x")).problems == ()


def test_a_problem_tells_the_line() -> None:
    def function() -> None:
        time.time()

    (problem,) = observe(function).problems
    assert (problem.source.file, problem.source.line) == (__file__, function.__code__.co_firstlineno + 1)


def test_an_iterator_that_lives_on_is_a_problem() -> None:
    numbers = iter([1, 2, 3])
    problems = observe(lambda: next(numbers)).problems
    assert any("iterator" in problem.reason for problem in problems)


def test_changing_torchs_state_is_a_problem() -> None:
    try:
        problems = observe(lambda: torch.set_grad_enabled(False)).problems
    finally:
        torch.set_grad_enabled(True)
    assert any("grad_mode" in problem.reason or "global state" in problem.reason for problem in problems)


def test_state_that_is_put_back_is_no_problem() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return x + 1

    assert observe(function, ONES).problems == ()
