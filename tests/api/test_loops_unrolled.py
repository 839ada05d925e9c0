"""Loops whose rounds differ, as Python counts, collects or puts back: each gives eager's answer all the same."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import dsjit
from tests.api.checks import assert_same
from tests.api.loops import halving, is_small_by_a_branch, run


def counts(x: Tensor) -> tuple[Tensor, int]:
    count = 0
    while x.max() >= 1:
        x = x / 2
        count += 1
    return x, count


def counts_to_a_limit(x: Tensor) -> Tensor:
    count = 0
    while x.max() >= 1:
        x = x / 2
        count += 1
        if count >= 8:
            return x * 100
    return x


def bounded(x: Tensor) -> Tensor:
    for _ in range(8):
        if x.max() < 1:
            break
        x = x / 2
    else:
        x = x * 100
    return x


def bounded_by_a_list(x: Tensor) -> Tensor:
    for scale in [0.5] * 8:
        if x.max() < 1:
            return x
        x = x * scale
    return x * 100


def collects(x: Tensor) -> list[Tensor]:
    history = []
    while x.max() >= 1:
        x = x / 2
        history.append(x)
    return history


def collects_out_of_sight(x: Tensor) -> tuple[Tensor, int]:
    history: list[int] = []

    def loop(x: Tensor, tell: Callable[[int], None]) -> Tensor:
        while x.max() >= 1:
            x = x / 2
            tell(0)
        return x

    return loop(x, history.append), len(history)


def has_an_iterator(x: Tensor) -> Tensor:
    scales = itertools.cycle([0.5, 0.25, 0.5])
    while x.max() >= 1:
        x = x * next(scales)
    return x


def has_an_iterator_that_ends(x: Tensor) -> Tensor:
    scales = iter([0.5] * 6)
    while x.max() >= 1:
        x = x * next(scales, 0.1)
    return x


def has_a_generator(x: Tensor) -> Tensor:
    def rounds() -> Iterator[float]:
        for number in range(6):
            yield 0.5 + 0.01 * number
        while True:
            yield 0.1

    scales = rounds()
    while x.max() >= 1:
        x = x * next(scales)
    return x


def is_a_generator(x: Tensor) -> Tensor:
    def halves(x: Tensor) -> Iterator[Tensor]:
        while x.max() >= 1:
            x = x / 2
            yield x

    for number, each in enumerate(halves(x)):
        x = each + number
    return x


def has_a_closure(x: Tensor) -> Tensor:
    count = 0

    def step(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return x / 2 if count < 6 else x / 16

    while x.max() >= 1:
        x = step(x)
    return x


class Counting:
    """Python state of before, and of the call."""

    def __init__(self) -> None:
        self.count = 0

    def step(self, x: Tensor) -> Tensor:
        self.count += 1
        return x / 2 if self.count < 6 else x / 16


COUNTING = Counting()
TOTAL = 0


def has_an_object(x: Tensor) -> Tensor:
    counting = Counting()
    while x.max() >= 1:
        x = counting.step(x)
    return x


def has_a_bound_method(x: Tensor) -> Tensor:
    step = Counting().step
    while x.max() >= 1:
        x = step(x)
    return x


def puts_state_back(x: Tensor) -> Tensor:
    COUNTING.count = 0
    while x.max() >= 1:
        x = COUNTING.step(x)
    COUNTING.count = 0
    return x


def puts_a_global_back(x: Tensor) -> Tensor:
    global TOTAL
    while x.max() >= 1:
        TOTAL += 1
        x = x / 2 if TOTAL < 6 else x / 16
    TOTAL = 0
    return x


def puts_a_list_back(x: Tensor, log: list[int] = []) -> Tensor:  # noqa: B006
    while x.max() >= 1:
        log.append(0)
        x = x / 2 if len(log) < 6 else x / 16
    log.clear()
    return x


def keeps_state_on_the_function(x: Tensor) -> Tensor:
    keeps_state_on_the_function.count = 0  # type: ignore[attr-defined]
    while x.max() >= 1:
        keeps_state_on_the_function.count += 1  # type: ignore[attr-defined]
        x = x / 2 if keeps_state_on_the_function.count < 6 else x / 16  # type: ignore[attr-defined]
    keeps_state_on_the_function.count = 0  # type: ignore[attr-defined]
    return x


def keeps_state_on_a_tensor(x: Tensor) -> Tensor:
    y = x.clone()
    y.count = 0  # type: ignore[attr-defined]
    while y.max() >= 1:
        y.count += 1  # type: ignore[attr-defined]
        y.mul_(0.5 if y.count < 6 else 0.05)  # type: ignore[attr-defined]
    return y * 1


def keeps_a_deque(x: Tensor) -> Tensor:
    window = deque([x], maxlen=3)
    while window[-1].max() >= 1:
        window.append(window[-1] / 2)
    return torch.stack(list(window)).sum(0)


def counts_in_the_stack(x: Tensor) -> Tensor:
    for scale in (1.0, 2.0, 3.0, 4.0):
        while x.max() >= scale:
            x = x / 2
        x = x * 3 * scale
    return x


@contextmanager
def counted(counter: list[int]) -> Iterator[None]:
    counter[0] += 1
    yield


def counts_by_contexts(x: Tensor) -> tuple[Tensor, int]:
    counter = [0]
    while x.max() >= 1:
        with counted(counter):
            x = x / 2
    return x, counter[0]


def recurses(x: Tensor, depth: int = 0) -> Tensor:
    return x + depth if x.max() < 1 else recurses(x / 2, depth + 1)


def adds_python_numbers(x: Tensor) -> tuple[Tensor, float]:
    scale = 1.0
    while x.max() >= 1:
        x = x / 2
        scale *= 0.5
    return x * scale, scale


def keeps_the_one_before(x: Tensor) -> tuple[Tensor, Tensor | None]:
    before = None
    while x.max() >= 1:
        before, x = x, x / 2
    return x, before


def alternates(x: Tensor) -> Tensor:
    flag = False
    while x.max() >= 1:
        x = x * (0.6 if flag else 0.5)
        flag = not flag
    return x


def compares_several_at_once(x: Tensor) -> Tensor:
    y = x
    while (x.max().item(), 1.0) > (1.0, y.max().item()):
        x, y = x / 2, y / 4
    return x


def compares_in_a_list(x: Tensor) -> Tensor:
    while [x.max() < 1, x.min() < 1] != [True, True]:
        x = x / 2
    return x


def sees_its_variables(x: Tensor) -> Tensor:
    while x.max() >= 1:
        locals()["x"]
        x = x / 2
    return x


def asks_in_a_map(x: Tensor) -> Tensor:
    while True:
        answers = list(map(is_small_by_a_branch, (x, x / 2, x / 4, x / 8)))
        if answers[3]:
            return x + sum(answers)
        x = x / 2


def asks_in_a_generator(x: Tensor) -> Tensor:
    while not any(is_small_by_a_branch(x * scale) for scale in (0.9, 0.7, 0.5)):
        x = x / 2
    return x


def sorts_by_what_a_function_sees(x: Tensor) -> Tensor:
    while True:
        first, *_ = sorted([x, x / 2, x / 3], key=lambda y: is_small_by_a_branch(y))
        if first.max() < 1:
            return first
        x = x / 2


def adds_what_functions_see(x: Tensor) -> Tensor:
    while is_small_by_a_branch(x) + is_small_by_a_branch(x / 2) < 2:
        x = x / 2
    return x


@dataclasses.dataclass
class Pair:
    """A state that is changed in place."""

    value: Tensor
    rounds: int = 0


def has_a_dataclass(x: Tensor) -> tuple[Tensor, int]:
    pair = Pair(x)
    while pair.value.max() >= 1:
        pair.value = pair.value / 2
        pair.rounds += 1
    return pair.value, pair.rounds


def leaves_aliases(x: Tensor) -> tuple[Tensor, Tensor]:
    first = y = x * 1
    while y.max() >= 1:
        y = y / 2
    y.add_(1)
    return first, y


def leaves_an_alias_outside(x: Tensor) -> tuple[Tensor, Tensor]:
    def halve(y: Tensor) -> Tensor:
        while True:
            if y.max() < 1:
                break
            y = y / 2
        y.add_(1)
        return y

    first = x * 1
    return first, halve(first)


def fills_a_buffer(x: Tensor) -> Tensor:
    buffer, position = torch.zeros(40), 0
    while x.max() >= 1:
        x = x / 2
        buffer[position] = x.sum()
        position += 1
    return buffer


@pytest.mark.parametrize(
    "function",
    [
        counts,
        counts_to_a_limit,
        bounded,
        bounded_by_a_list,
        collects,
        collects_out_of_sight,
        has_an_iterator,
        has_an_iterator_that_ends,
        has_a_generator,
        is_a_generator,
        has_a_closure,
        has_an_object,
        has_a_bound_method,
        puts_state_back,
        puts_a_global_back,
        puts_a_list_back,
        keeps_state_on_the_function,
        keeps_state_on_a_tensor,
        keeps_a_deque,
        counts_in_the_stack,
        counts_by_contexts,
        recurses,
        adds_python_numbers,
        keeps_the_one_before,
        alternates,
        compares_several_at_once,
        compares_in_a_list,
        asks_in_a_map,
        asks_in_a_generator,
        sorts_by_what_a_function_sees,
        adds_what_functions_see,
        sees_its_variables,
        has_a_dataclass,
        leaves_aliases,
        leaves_an_alias_outside,
        fills_a_buffer,
    ],
    ids=lambda function: function.__name__,
)
@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
def test_rounds_that_differ_give_eagers_answer(function: Callable[..., Any]) -> None:
    run(function, [5, 1, 0, 9, 2, 3, 4, 7, 6, 8, 12, 11, 5])


def test_what_rounds_print_is_printed_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    def f(x: Tensor) -> Tensor:
        while x.max() >= 1:
            print("round")
            x = x / 2
        return x

    jitted = dsjit.jit(f)
    for count in (5, 1, 3, 7, 4):
        assert_same(jitted(halving(count)), halving(count) / 2**count)
        assert capsys.readouterr().out == "round\n" * count


def test_what_rounds_log_is_logged_each_time(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tests.loops")

    def f(x: Tensor) -> Tensor:
        while x.max() >= 1:
            logger.warning("round")
            x = x / 2
        return x

    jitted = dsjit.jit(f)
    for count in (5, 1, 3, 7, 4):
        caplog.clear()
        assert_same(jitted(halving(count)), halving(count) / 2**count)
        assert len(caplog.records) == count


def test_what_rounds_add_to_a_counter_is_added_each_time() -> None:
    counting = Counting()

    def f(x: Tensor) -> Tensor:
        while x.max() >= 1:
            counting.count += 1
            x = x / 2
        return x

    jitted = dsjit.jit(f)
    for count in (5, 1, 3, 7, 4):
        before = counting.count
        assert_same(jitted(halving(count)), halving(count) / 2**count)
        assert counting.count == before + count


def test_a_loop_raises_when_eager_raises() -> None:
    def f(x: Tensor) -> Tensor:
        while x.max() >= 1:
            x = x / 2
            if x.sum() > 1000:
                raise ValueError("too large")
        return x

    jitted = dsjit.jit(f)
    for count in (5, 1, 3, 7, 4):
        assert_same(jitted(halving(count)), f(halving(count)))
    for count in (12, 16):
        with pytest.raises(ValueError, match="too large"):
            jitted(halving(count))
    assert_same(jitted(halving(6)), f(halving(6)))
