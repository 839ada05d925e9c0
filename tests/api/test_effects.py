"""What a compiled call does to Python: the state it leaves, what it prints, logs and warns, is what eager leaves.

Each scenario makes its state and a function over it. It is played eagerly and jitted; after each call the results and
the states are compared, object for object.
"""

from __future__ import annotations

import logging
import pathlib
import random
import time
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

import dsjit
from dsjit.errors import CaptureError
from tests.api.checks import assert_same, counters_of

Scenario = Callable[[], tuple[Callable[..., Any], Any]]
LOGGER = logging.getLogger("dsjit.test.effects")
TOTAL, LAST = 0, None


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


class Box:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Slotted:
    __slots__ = ("count", "last")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.scale = nn.Parameter(torch.full((3,), 2.0))
        self.calls = 0
        self.seen: list[torch.Tensor] = []
        self.last: Any = None


def described(value: Any, known: dict[int, int]) -> Any:
    """Types, values and sharing of everything below `value`, for comparison by ==."""
    if isinstance(value, str | int | float | bool | type(None) | type | torch.dtype | torch.Size):
        return type(value).__name__, repr(value)
    if id(value) in known:
        return "again", known[id(value)]
    known[id(value)] = len(known)
    if isinstance(value, torch.Tensor):
        return type(value).__name__, value.dtype, tuple(value.stride()), value.tolist()
    parts: list[Any] = [type(value).__name__]
    if isinstance(value, dict):
        parts += [(described(key, known), described(item, known)) for key, item in value.items()]
    elif isinstance(value, set):
        parts += sorted(map(repr, value))
    elif isinstance(value, list | tuple | deque):
        parts += [described(item, known) for item in value]
    parts += [(name, described(item, known)) for name, item in getattr(value, "__dict__", {}).items()]
    parts += [(name, described(getattr(value, name, None), known)) for name in getattr(value, "__slots__", ())]
    return tuple(parts)


def inputs(number: int) -> torch.Tensor:
    return torch.arange(3.0) + number


def play(scenario: Scenario, function: Callable[[Any], Any], calls: int) -> list[Any]:
    body, state = scenario()
    body = function(body)
    found = []
    for number in range(calls):
        x = inputs(number)
        found.append(described([body(x), x, state() if isinstance(state, types.FunctionType) else state], {}))
    return found


def attributes() -> tuple[Callable[..., Any], Any]:
    box = Box(calls=0, total=0.5, last=None, old=1)

    def f(x: torch.Tensor) -> torch.Tensor:
        box.calls += 1
        box.total -= 0.25
        box.last = x * 2
        box.kept = (box.last, x, [box.last])
        if hasattr(box, "old"):
            del box.old
        return box.last

    return f, box


def slots() -> tuple[Callable[..., Any], Any]:
    slotted = Slotted()
    slotted.count = 0

    def f(x: torch.Tensor) -> torch.Tensor:
        slotted.count = slotted.count + 2
        slotted.last = x + 1
        return x * 2

    return f, slotted


def module() -> tuple[Callable[..., Any], Any]:
    net = Net()

    def forward(x: torch.Tensor) -> torch.Tensor:
        net.calls += 1
        net.mean = net.mean * 0.5 + x
        net.seen.append(net.mean)
        net.scale.mul_(1.5)
        net.last = {"mean": net.mean, "scale": net.scale}
        return net.mean * net.scale

    return forward, net


def variables() -> tuple[Callable[..., Any], Any]:
    global TOTAL, LAST
    calls, latest = 0, None
    TOTAL, LAST = 0, None

    def f(x: torch.Tensor) -> torch.Tensor:
        global TOTAL, LAST
        nonlocal calls, latest
        calls, TOTAL = calls + 1, TOTAL + x.shape[0]
        latest = LAST = x * 3
        return x

    return f, lambda: (calls, latest, TOTAL, LAST)


def tables() -> tuple[Callable[..., Any], Any]:
    counts: dict[str, Any] = {"n": 0, "gone": 1}
    by_name: defaultdict[str, Any] = defaultdict(list, total=0)
    tally = Counter(a=3)

    def f(x: torch.Tensor) -> torch.Tensor:
        counts["n"] += 1
        counts["last"] = x + 1
        by_name["total"] += 2
        tally["a"] -= 1
        return x

    return f, [counts, by_name, tally]


def histories() -> tuple[Callable[..., Any], Any]:
    history: list[Any] = [1]
    box = Box(log=[], more=[])

    def f(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        history.append(y)
        box.log.append(("y", y, x))
        box.more += [y, y + 1]
        return y

    return f, [history, box]


def containers_of_all_kinds() -> tuple[Callable[..., Any], Any]:
    numbers = [3, 1, 2]
    table: dict[str, Any] = {"a": 1, "b": 2}
    order = OrderedDict(a=1, b=2)
    names = {"x"}
    recent = deque([0.0], maxlen=2)

    def f(x: torch.Tensor) -> torch.Tensor:
        numbers.sort()
        numbers[1:2] = [2]
        table["b"] = table.pop("a", 5)
        table["a"] = x
        order.move_to_end("a")
        names.add("y")
        recent.clear()
        recent.append(x + 1)
        return x

    return f, [numbers, table, order, names, recent]


def new_objects() -> tuple[Callable[..., Any], Any]:
    box = Box(first=None, second=None, others={})

    def f(x: torch.Tensor) -> Any:
        pair = Box(left=x, right=x[1:])
        pair.itself = pair
        box.first = pair
        box.second = [pair, pair.right]
        box.others["pair"] = pair
        return pair

    return f, box


def existing_objects() -> tuple[Callable[..., Any], Any]:
    box = Box(current=None, left=Box(name="left"), right=Box(name="right"), all=[])

    def f(x: torch.Tensor) -> Any:
        box.current = box.left
        box.left, box.right = box.right, box.left
        return box.current, x + 1

    return f, box


def classes() -> tuple[Callable[..., Any], Any]:
    class Registry:
        items: list[Any] = []
        last: Any = None

    def f(x: torch.Tensor) -> torch.Tensor:
        Registry.items.append(x)
        Registry.last = x * 2
        return x + 1

    return f, lambda: [Registry.items, Registry.last]


def numbers_from_tensors() -> tuple[Callable[..., Any], Any]:
    box = Box(loss=0.0, losses=[])

    def f(x: torch.Tensor) -> torch.Tensor:
        box.loss = x.sum().item()
        box.losses.append(box.loss)
        return x * 2

    return f, box


SCENARIOS: dict[Scenario, int] = {
    attributes: 2,
    slots: 1,
    module: 1,
    variables: 1,
    tables: 1,
    histories: 1,
    containers_of_all_kinds: 3,
    new_objects: 1,
    existing_objects: 1,
    classes: 2,
    numbers_from_tensors: 1,
}
"""With the number of traces that are needed."""


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_compiled_calls_leave_the_state_that_eager_leaves(scenario: Scenario) -> None:
    jitted: list[Any] = []

    def jit(function: Any) -> Any:
        jitted.append(dsjit.jit(function))
        return jitted[0]

    assert play(scenario, jit, 5) == play(scenario, lambda function: function, 5)
    counters = counters_of(jitted[0])
    assert (counters.traces, counters.calls_eager) == (SCENARIOS[scenario], 0)
    assert counters.calls_compiled == 5 - SCENARIOS[scenario]


def test_a_counter_that_is_computed_with_is_an_input() -> None:
    box = Box(calls=0)

    def f(x: torch.Tensor) -> torch.Tensor:
        box.calls += 1
        return x * box.calls

    jitted = dsjit.jit(f)
    for number in range(1, 5):
        assert torch.equal(jitted(torch.ones(2)), torch.full((2,), float(number)))
    box.calls = 1
    assert torch.equal(jitted(torch.ones(2)), torch.full((2,), 2.0))
    assert counters_of(jitted).traces == 2
    assert box.calls == 2


def test_a_history_that_is_read_is_guarded() -> None:
    history: list[int] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        history.append(1)
        return x + len(history)

    jitted = dsjit.jit(f)
    assert [jitted(torch.zeros(1)).item() for _ in range(3)] == [1.0, 2.0, 3.0]


def test_a_sum_that_was_stored_elsewhere_first_is_not_lost() -> None:
    box = Box(n=0)

    def bump() -> int:
        box.n = box.n + 10
        return 1

    def f(x: torch.Tensor) -> torch.Tensor:
        box.n = box.n + bump()
        return x + 1

    jitted = dsjit.jit(f)
    for number in range(1, 5):
        jitted(torch.zeros(1))
        assert box.n == number


def test_old_values_are_guarded_as_they_were_before_the_call() -> None:
    box = Box(mode="a")

    def f(x: torch.Tensor) -> torch.Tensor:
        y = x + 1 if box.mode == "a" else x - 1
        box.mode = "b" if box.mode == "a" else "a"
        return y

    jitted = dsjit.jit(f)
    assert [jitted(torch.zeros(1)).item() for _ in range(6)] == [1.0, -1.0, 1.0, -1.0, 1.0, -1.0]
    counters = counters_of(jitted)
    assert (counters.traces, counters.calls_compiled) == (2, 4)
    box.mode = "a"
    assert jitted(torch.zeros(1)).item() == 1.0


def test_a_history_in_a_class_is_guarded_when_an_instance_reads_it() -> None:
    class Keeper:
        items: list[int] = []

    keeper = Keeper()

    def f(x: torch.Tensor) -> torch.Tensor:
        Keeper.items.append(1)
        return x + len(getattr(keeper, "items"))  # noqa: B009

    jitted = dsjit.jit(f)
    assert [jitted(torch.zeros(1)).item() for _ in range(3)] == [1.0, 2.0, 3.0]


def test_a_key_value_cache_is_written_in_place_of_the_caller() -> None:
    def step(cache: DynamicCache, keys: torch.Tensor) -> torch.Tensor:
        everything, values = cache.update(keys, keys + 1, 0)
        return (everything * values).sum(-1)

    jitted = dsjit.jit(step)
    for sequence in range(3):
        mine, theirs = DynamicCache(), DynamicCache()
        for number in range(3):
            keys = torch.full((1, 2, 1, 2), float(sequence + number))
            assert torch.equal(jitted(mine, keys), step(theirs, keys))
            assert torch.equal(mine.layers[0].keys, theirs.layers[0].keys)
            assert torch.equal(mine.layers[0].values, theirs.layers[0].values)
    counters = counters_of(jitted)
    assert (counters.traces, counters.calls_compiled) == (3, 6)


def test_two_objects_that_become_one_are_told_apart() -> None:
    def f(a: list[int], b: list[int], x: torch.Tensor) -> torch.Tensor:
        a.append(1)
        return x + len(b)

    jitted = dsjit.jit(f)
    for _ in range(2):
        assert jitted([], [], torch.zeros(1)).item() == 0.0
    one: list[int] = []
    assert jitted(one, one, torch.zeros(1)).item() == 1.0


def test_an_attribute_that_moves_between_objects_is_told_from_them() -> None:
    box = Box(left=Box(), right=Box())
    box.current = box.left

    def f(x: torch.Tensor) -> torch.Tensor:
        if box.current is box.left:
            box.current = box.right
            return x + 1
        box.current = box.left
        return x - 1

    jitted = dsjit.jit(f)
    assert [jitted(torch.zeros(1)).item() for _ in range(8)] == [1.0, -1.0] * 4
    counters = counters_of(jitted)
    assert (counters.traces, counters.calls_compiled) == (2, 6)


def test_nothing_is_changed_by_a_call_that_raises_what_eager_raises() -> None:
    box = Box(calls=0)

    def f(x: torch.Tensor) -> torch.Tensor:
        box.calls += 1
        if x.sum() < 0:
            raise ValueError("negative")
        box.last = x
        return x + 1

    jitted = dsjit.jit(f)
    for _ in range(2):
        jitted(torch.ones(2))
    with pytest.raises(ValueError, match="negative"):
        jitted(-torch.ones(2))
    assert box.calls == 3
    assert torch.equal(box.last, torch.ones(2))


def test_a_write_on_one_branch_happens_on_that_branch() -> None:
    alarms: list[torch.Tensor] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        if x.max() > 10:
            alarms.append(x.max())
        return x + 1

    jitted = dsjit.jit(f)
    for number in (1.0, 20.0, 2.0, 30.0, 3.0):
        jitted(torch.full((2,), number))
    assert [alarm.item() for alarm in alarms] == [20.0, 30.0]
    assert counters_of(jitted).traces == 2


# -- what cannot be done again ---------------------------------------------------------------------------------------


def a_clock(x: torch.Tensor) -> torch.Tensor:
    return x + (time.time() > 0)


def a_die(x: torch.Tensor) -> torch.Tensor:
    return x + random.randint(1, 6)


def a_traceback(x: torch.Tensor) -> torch.Tensor:
    LOGGER.warning("stack", stack_info=True)
    return x + 1


@pytest.mark.parametrize(
    ("function", "reason"),
    [(a_clock, "reads a clock"), (a_die, "draws from Python's random"), (a_traceback, "logs an exception or a stack")],
)
def test_what_cannot_be_done_again_runs_eagerly_with_its_line(function: Callable[..., Any], reason: str) -> None:
    jitted = dsjit.jit(function)
    with pytest.warns(dsjit.DsjitWarning) as caught:
        for _ in range(3):
            jitted(torch.ones(1))
    (warning,) = caught
    assert reason in str(warning.message)
    assert warning.filename == __file__
    assert warning.lineno == function.__code__.co_firstlineno + 1
    assert counters_of(jitted).calls_eager == 3
    with pytest.raises(CaptureError):
        dsjit.jit(function, fullgraph=True)(torch.ones(1))


def test_what_a_module_does_when_it_is_loaded_is_no_part_of_the_call(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reads_itself_once.py").write_text("LENGTH = len(open(__file__).read())\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def function(x: torch.Tensor) -> torch.Tensor:
        import reads_itself_once  # type: ignore[import-not-found]  # noqa: PLC0415

        return x + reads_itself_once.LENGTH

    jitted = dsjit.jit(function)
    for _ in range(3):
        assert_same(jitted(torch.ones(2)), function(torch.ones(2)))
    assert counters_of(jitted).calls_eager == 0
    assert counters_of(jitted).calls_compiled >= 1
