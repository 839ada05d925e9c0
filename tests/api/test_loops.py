"""Loops on tensor values: a number of rounds that was never seen traces nothing and compiles nothing.

That is only so when Python is in the same state after a round as before it. Whatever counts, collects or puts back is
no such loop, and gives eager's answer all the same.
"""

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
from torch import Tensor, nn

import dsjit
from dsjit.api.entry import jitted_of
from tests.api.checks import assert_same, counters_of


def halving(rounds: int) -> Tensor:
    """What takes so many rounds of halving to come below 1 (none, for 0)."""
    return torch.tensor([0.3, 0.75, 0.1, 0.5]) * 2**rounds


def run(function: Callable[..., Any], rounds: list[int], **options: Any) -> Any:
    """Call the jitted function on inputs of so many rounds, compare each call with eager; the jitted function."""
    jitted = dsjit.jit(function, **options)
    for count in rounds:
        mine, theirs = halving(count), halving(count)
        assert_same(jitted(mine), function(theirs))
        assert_same(mine, theirs)
    return jitted


SEEN = [5, 1, 0, 2]
UNSEEN = [3, 4, 6, 7, 9, 12, 20, 33]


def until_small(x: Tensor) -> Tensor:
    while x.abs().max() >= 1:
        x = x / 2
    return x + 1


def number_is_small(x: Tensor, limit: float = 1.0) -> Tensor:
    while True:
        x = x / 2
        if x.abs().max().item() < limit:
            break
    return x


def assigned_in_the_test(x: Tensor) -> tuple[Tensor, Tensor]:
    while (largest := x.max()) >= 1:
        x = x / 2
    return x, largest


def called_bool(x: Tensor) -> Tensor:
    y = x * 2
    while bool((y - x).abs().max() >= 1):
        x, y = x / 2, y / 2
    return x - y


def item_of_truths(x: Tensor) -> Tensor:
    while (x >= 1).any().item():
        x = torch.where(x >= 1, x / 2, x)
    return x


def not_yet(x: Tensor) -> Tensor:
    while not (x < 1).all():
        x = x / 2
    return x


def with_a_tuple(x: Tensor) -> Tensor:
    state = (x, torch.zeros_like(x))
    while state[0].max() >= 1:
        state = (state[0] / 2, state[1] + state[0])
    return state[1]


def in_place(x: Tensor) -> Tensor:
    y = x.clone()
    count = torch.zeros(())
    while y.max() >= 1:
        y.mul_(0.5)
        count += 1
    return torch.cat([y, count[None]])


def in_place_of_the_argument(x: Tensor) -> Tensor:
    while x.max() >= 1:
        x.mul_(0.5)
    return x.sum()


def rows_in_place(x: Tensor) -> Tensor:
    y = torch.stack([x, x + 1])
    first = y[0]
    while first.max() >= 1:
        y[0] *= 0.5
    return y


def swapped(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = x, x * 0.5
    while a.max() >= 1:
        a, b = b, a * 0.5
    return a, b


def branches_inside(x: Tensor) -> Tensor:
    while x.max() >= 1:
        x = x / 2 if x.sum() > 6 else x / 2 + 0.01 * x
    return x


def two_loops(x: Tensor) -> Tensor:
    y = x
    while x.max() >= 1:
        x = x / 2
    while y.max() >= 2:
        y = y / 2
    return x + y


def nested_loops(x: Tensor) -> Tensor:
    total = torch.zeros(())
    while x.max() >= 1:
        y = x
        while y.sum() >= 1:
            y = y / 4
        total = total + y.sum()
        x = x / 2
    return total


def under_no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        while x.max() >= 1:
            x = x / 2
    return x


@torch.no_grad()
def decorated(x: Tensor) -> Tensor:
    while x.max() >= 1:
        x = x / 2
    return x


def views(x: Tensor) -> Tensor:
    y = (x * 1).view(2, 2)
    while y.t()[0].max() >= 1:
        y = (y / 2).t().contiguous().view(2, 2)
    return y


def random_steps(x: Tensor) -> Tensor:
    torch.manual_seed(5)
    while x.max() >= 1:
        x = x / 2 - 0.01 * torch.rand(4)
    return x


def float_is_carried(x: Tensor) -> tuple[Tensor, float]:
    best = x.max().item()
    while best >= 1.0:
        x = x / 2
        best = x.max().item()
    return x, best


def is_small(x: Tensor, limit: float) -> bool:
    return bool(x.max() < limit)


def is_small_by_a_branch(x: Tensor) -> bool:
    largest = x.max().item()
    if largest < 1.0:
        return x.dim() == 1
    return False


def is_small_by_another(x: Tensor) -> bool:
    return not is_small_by_a_branch(x)


def until_a_function_says_so(x: Tensor) -> Tensor:
    while not is_small(x, 1.0):
        x = x / 2
    return x


def until_a_function_branches(x: Tensor) -> Tensor:
    while True:
        if is_small_by_a_branch(x):
            break
        x = x / 2
    return x


def until_a_function_of_a_function(x: Tensor) -> Tensor:
    while is_small_by_another(x):
        x = x / 2
    return x


FOLDED = [
    until_a_function_says_so,
    until_a_function_branches,
    until_a_function_of_a_function,
    until_small,
    number_is_small,
    assigned_in_the_test,
    called_bool,
    item_of_truths,
    not_yet,
    with_a_tuple,
    in_place,
    in_place_of_the_argument,
    rows_in_place,
    swapped,
    under_no_grad,
    decorated,
    views,
    random_steps,
    float_is_carried,
]


@pytest.mark.parametrize("function", FOLDED, ids=lambda function: function.__name__)
def test_a_new_number_of_rounds_traces_and_compiles_nothing(function: Callable[..., Any]) -> None:
    jitted = run(function, SEEN)
    counters = counters_of(jitted)
    before = counters.traces, counters.compiles
    for count in UNSEEN:
        mine, theirs = halving(count), halving(count)
        assert_same(jitted(mine), function(theirs))
        assert_same(mine, theirs)
    assert (counters.traces, counters.compiles, counters.calls_eager) == (*before, 0)
    assert len(jitted_of(jitted).trees) == 1


@pytest.mark.parametrize("function", [branches_inside, two_loops, nested_loops], ids=lambda f: f.__name__)
def test_loops_with_ways_of_their_own_settle(function: Callable[..., Any]) -> None:
    jitted = run(function, [*SEEN, 6, 8, 11, 13])
    counters = counters_of(jitted)
    before = counters.traces
    for count in (4, 7, 10, 15, 20, 24):
        assert_same(jitted(halving(count)), function(halving(count)))
    assert counters.traces == before and counters.calls_eager == 0


class Solver(nn.Module):
    """Halves until small, by a submodule; what is small, a method tells."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(4, 4, bias=False)
        self.limit = 1.0
        with torch.no_grad():
            self.step.weight.copy_(torch.eye(4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max().item() >= self.limit:
            x = self.step(x)
        while not self.is_tiny(x):
            x = self.step(x)
        return x

    def is_tiny(self, x: Tensor) -> bool:
        return bool(x.sum() < self.limit / 4)


def test_a_loop_in_a_method_of_a_module() -> None:
    module = Solver()
    jitted = dsjit.jit(module)
    with torch.no_grad():
        for count in SEEN:
            assert_same(jitted(halving(count)), module(halving(count)))
        traces = counters_of(jitted).traces
        for count in UNSEEN:
            assert_same(jitted(halving(count)), module(halving(count)))
        assert counters_of(jitted).traces == traces
        module.limit = 2.0
        for count in (3, 9, 15):
            assert_same(jitted(halving(count)), module(halving(count)))


def test_a_loop_in_a_function_that_is_called_again_and_again() -> None:
    def f(x: Tensor) -> Tensor:
        for factor in (1.0, 8.0, 64.0):
            x = until_small(x * factor)
        return x

    jitted = run(f, [5, 4, 0])
    traces = counters_of(jitted).traces
    for count in (1, 2, 9, 20):
        assert_same(jitted(halving(count)), f(halving(count)))
    assert counters_of(jitted).traces == traces


def test_a_loop_of_a_single_trace() -> None:
    counters = counters_of(run(until_small, [20, 8, 15, 30, 6]))
    assert (counters.calls_traced, counters.calls_compiled) == (1, 4)


def test_state_that_the_loop_reads_is_guarded() -> None:
    config = {"divisor": 2.0}

    def f(x: Tensor) -> Tensor:
        while x.max() >= 1:
            x = x / config["divisor"]
        return x

    jitted = dsjit.jit(f)
    for divisor, count in itertools.product((2.0, 3.0, 2.0), (5, 2, 9, 12)):
        config["divisor"] = divisor
        assert_same(jitted(halving(count)), f(halving(count)))


# -- what is no loop of equal rounds -----------------------------------------------------------------------------------


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
