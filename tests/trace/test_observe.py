"""What the Observer finds: paths of what existed, effects and other problems; and that it leaves no trace itself."""

from __future__ import annotations

import datetime
import io
import logging
import random
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dsjit.errors import CaptureError
from dsjit.trace.observe import Observer
from dsjit.trace.patching import PATCHED_NAMES, PATCHES

ONES = torch.ones(2, 3)
WEIGHT = torch.ones(3)
COUNTERS = {"calls": 0}
COUNT = 0
LOGGER = logging.getLogger("dsjit.test")


class Box:
    count = 0

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Slotted:
    __slots__ = ("value",)


def observe(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Observer:
    observer = Observer(function, args, kwargs)
    with observer:
        function(*args, **kwargs)
    return observer


# -------------------------------------------------------------------- paths


def test_paths_of_tensors() -> None:
    closed = torch.ones(3)
    layer = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    box = Box(items=[torch.ones(3)], table={"k": torch.ones(3)})

    def function(x: Any, *, y: torch.Tensor) -> Any:
        return layer(x[0]) + closed + WEIGHT + box.items[0] + box.table["k"] + y

    observer = observe(function, [ONES], y=ONES * 2)
    paths = {str(path) for path in observer.tensor_paths()}
    assert paths == {
        "args[0][0]",
        "kwargs['y']",
        "closure(function)['closed']",
        f"globals({__name__})['WEIGHT']",
        "closure(function)['box'].items[0]",
        "closure(function)['box'].table['k']",
        "closure(function)['layer'][0].weight",
        "closure(function)['layer'][0].bias",
        "closure(function)['layer'][1].weight",
        "closure(function)['layer'][1].bias",
        "closure(function)['layer'][1].running_mean",
        "closure(function)['layer'][1].running_var",
    }


def test_paths_are_known_while_the_function_runs() -> None:
    layer = nn.Linear(3, 3)
    seen: list[str] = []

    def function(x: torch.Tensor) -> None:
        weight = layer.weight
        seen.append(str(observer.path_of(weight)))
        seen.append(str(observer.path_of(x + 1)))

    observer = Observer(function, (ONES,), {})
    with observer:
        function(ONES)
    assert seen == ["closure(function)['layer'].weight", "None"]


def test_paths_of_modules_and_methods() -> None:
    layer = nn.Sequential(nn.Linear(3, 3))
    assert str(observe(layer, ONES).path_of_object(layer)) == "self"
    assert str(observe(layer.forward, ONES).path_of_object(layer[0])) == "self[0]"


def test_a_tensor_born_in_the_call_has_no_path() -> None:
    born: list[torch.Tensor] = []
    box = Box()

    def function(x: torch.Tensor) -> None:
        other = Box(value=x * 2)
        born.append(other.value)

    observer = observe(function, ONES)
    assert observer.path_of(born[0]) is None
    assert observer.path_of_object(box) is None


# -------------------------------------------------------------------- effects


def _effect_cases() -> dict[str, tuple[Callable[[Any], Any], Any, str]]:
    def set_attribute(box: Any) -> None:
        box.count = 1

    def increment(box: Any) -> None:
        box.total += 1

    def delete(box: Any) -> None:
        del box.total

    def through_dict(box: Any) -> None:
        box.__dict__["fresh"] = 1

    def append(box: Any) -> None:
        box.items.append(1)

    def set_item(box: Any) -> None:
        box.table["k"] = 2

    def set_class(box: Any) -> None:
        type(box).count += 1

    def cache_tensor(box: Any) -> None:
        box.cache = torch.ones(1)

    def cache_in_list(box: Any) -> None:
        box.tensors[0] = torch.ones(1)

    def resize(box: Any) -> None:
        box.tensors[0].resize_(5)

    def add_to_set(box: Any) -> None:
        box.names.add("new")

    def set_slot(box: Any) -> None:
        box.slotted.value = 2

    slotted = Slotted()
    slotted.value = 1
    make = lambda: Box(total=0, items=[], table={"k": 1}, tensors=[torch.ones(3)], names={"a"}, slotted=slotted)  # noqa: E731
    return {
        "attribute": (set_attribute, make(), "writes attribute 'count' of args[0]"),
        "increment": (increment, make(), "writes attribute 'total' of args[0]"),
        "deletion": (delete, make(), "writes attribute 'total' of args[0]"),
        "through __dict__": (through_dict, make(), "changes the contents of args[0]"),
        "list": (append, make(), "changes the contents of args[0].items"),
        "dictionary": (set_item, make(), "writes item 'k' of args[0].table"),
        "class": (set_class, make(), "writes class 'count' of Box"),
        "cached tensor": (cache_tensor, make(), "writes attribute 'cache' of args[0]"),
        "tensor in a list": (cache_in_list, make(), "writes item 0 of args[0].tensors"),
        "tensor's shape": (resize, make(), "changes the metadata of args[0].tensors[0]"),
        "set": (add_to_set, make(), "changes the contents of args[0].names"),
        "slot": (set_slot, make(), "writes attribute 'value' of args[0].slotted"),
    }


EFFECTS = _effect_cases()


@pytest.mark.parametrize(("function", "box", "effect"), EFFECTS.values(), ids=list(EFFECTS))
def test_writes_to_what_existed_are_effects(function: Callable[[Any], Any], box: Any, effect: str) -> None:
    observer = observe(function, box)
    assert effect in [str(found) for found in observer.effects]
    assert [problem.reason for problem in observer.problems] == [str(found) for found in observer.effects]
    Box.count = 0


def test_writes_of_globals_and_closures_are_effects() -> None:
    count = 0

    def function() -> None:
        nonlocal count
        global COUNT
        count += 1
        COUNT += 1
        COUNTERS["calls"] += 1

    found = {str(effect) for effect in observe(function).effects}
    assert found == {
        "writes closure 'count' of function",
        f"writes global 'COUNT' of globals({__name__})",
        f"writes item 'calls' of globals({__name__})['COUNTERS']",
    }


def test_an_effect_tells_the_line() -> None:
    def function(box: Any) -> None:
        box.count = 5

    (problem,) = observe(function, Box()).problems
    assert problem.source.file == __file__
    assert problem.source.line == function.__code__.co_firstlineno + 1
    assert problem.source.function.endswith("function")


def test_assigning_what_is_there_already_is_no_effect_but_a_read() -> None:
    box = Box(flag=True, limit=0.5)

    def function(x: torch.Tensor) -> torch.Tensor:
        box.flag = True
        box.limit = 0.5
        return x

    observer = observe(function, ONES)
    assert observer.problems == ()
    guard = observer.build_guard((), frozenset())
    assert guard.check((ONES,), {}) is not None
    box.flag = False
    assert guard.check((ONES,), {}) is None


def test_writes_to_objects_born_in_the_call_are_no_effects() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        box = Box(items=[])
        box.total = 1
        box.items.append(x)
        table = {}
        table["x"] = x
        return box.items[0] + table["x"]

    assert observe(function, ONES).problems == ()


def test_the_guard_of_a_call_with_effects_fails_while_they_last() -> None:
    box = Box(cache=None)

    def function(x: torch.Tensor) -> torch.Tensor:
        if box.cache is None:
            box.cache = 2.0
        return x * box.cache

    guard = observe(function, ONES).build_guard((), frozenset())
    assert guard.check((ONES,), {}) is None
    assert guard.why_not((ONES,), {}) == "closure(function)['box'].cache: was None, now 2.0"
    assert observe(function, ONES).problems == ()
    box.cache = None
    assert guard.check((ONES,), {}) is not None


# -------------------------------------------------------------------- what reaches outside


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
    "log": (lambda: LOGGER.warning("x"), "logs"),
}


pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(("function", "reason"), PROBLEMS.values(), ids=list(PROBLEMS))
def test_calls_that_reach_outside_are_problems(
    function: Callable[[], Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = observe(function).problems
    assert reason in [problem.reason for problem in problems]


def test_warnings_and_logs_may_pass() -> None:
    passing = {p.reason: p.passing for function, _ in PROBLEMS.values() for p in observe(function).problems}
    assert {reason for reason, passes in passing.items() if passes} == {"warns", "logs"}


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


# -------------------------------------------------------------------- what the Observer leaves behind


def _patched_entries(*classes: type) -> dict[tuple[type, str], Any]:
    return {(cls, name): cls.__dict__.get(name) for cls in classes for name in PATCHED_NAMES}


class Custom:
    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)


@pytest.mark.parametrize("fails", [False, True])
def test_everything_patched_is_put_back(fails: bool) -> None:
    classes = (Box, Custom, nn.Module, nn.Linear)
    before = _patched_entries(*classes)
    layer, box, custom = nn.Linear(3, 3), Box(a=1), Custom()
    profiler = sys.getprofile()

    def function(x: torch.Tensor) -> None:
        assert _patched_entries(*classes) != before
        _ = layer(x), box.a
        custom.b = 1
        if fails:
            raise ZeroDivisionError

    observer = Observer(function, (ONES,), {})
    try:
        with observer:
            function(ONES)
    except ZeroDivisionError:
        assert fails
    assert _patched_entries(*classes) == before
    assert sys.getprofile() is profiler
    assert PATCHES.current.listener is None


def test_a_profiler_of_the_users_is_put_back() -> None:
    events: list[str] = []

    def profiler(frame: Any, event: str, argument: Any) -> None:
        events.append(event)

    sys.setprofile(profiler)
    try:
        observe(lambda x: x + 1, ONES)
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)


def test_other_threads_are_not_recorded() -> None:
    box, other = Box(a=1), Box(a=1)
    started, done = threading.Event(), threading.Event()

    def elsewhere() -> None:
        started.wait(10)
        other.b = 2
        box.c = 3
        print("elsewhere", file=io.StringIO())
        done.set()

    def function(x: torch.Tensor, y: Box) -> int:
        started.set()
        done.wait(10)
        return int(box.a + other.a)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    observer = observe(function, ONES, other)
    thread.join()
    assert observer.problems == ()


def test_two_threads_may_trace_at_once() -> None:
    boxes = [Box(a=1), Box(a=1)]
    before = _patched_entries(Box)
    barrier = threading.Barrier(2)
    paths: dict[int, list[str]] = {}

    def run(number: int) -> None:
        def function() -> Any:
            barrier.wait(10)
            value = boxes[number].a
            barrier.wait(10)
            return value

        observer = observe(function)
        guard = observer.build_guard((), frozenset())
        paths[number] = [line.path for line in guard.describe() if line.path.endswith(".a")]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(paths[0]), len(paths[1])] == [2, 2]  # the instance's entry, and that no class has one
    assert "[0].a" in " ".join(paths[0])
    assert "[1].a" in " ".join(paths[1])
    assert _patched_entries(Box) == before


def test_a_trace_inside_a_trace_is_refused() -> None:
    def inner() -> None:
        with pytest.raises(CaptureError, match="already running"):
            observe(lambda: None)

    observe(inner)


def test_a_trace_under_a_mode_of_others_is_refused() -> None:
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    with Mode(), pytest.raises(CaptureError, match="TorchDispatchMode"):
        observe(lambda: None)


def test_the_function_runs_as_without_an_observer() -> None:
    class Strange:
        def __init__(self) -> None:
            self.log: list[str] = []

        def __getattr__(self, name: str) -> Any:
            if name == "missing":
                raise AttributeError("no such thing")
            return name.upper()

    strange = Strange()
    layer = nn.Linear(3, 3)

    def function() -> list[Any]:
        results: list[Any] = [strange.abc, hasattr(strange, "missing"), hasattr(layer, "nothing")]
        try:
            _ = layer.nothing
        except AttributeError as error:
            results.append(str(error))
        try:
            _ = strange.missing
        except AttributeError as error:
            results.append(str(error))
        return results

    expected = function()
    observer = Observer(function, (), {})
    with observer:
        assert function() == expected


def test_code_of_the_users_containers_does_not_run() -> None:
    class Loud(list[Any]):
        def __len__(self) -> int:
            raise AssertionError("not to be called")

        __iter__ = __getitem__ = __len__  # type: ignore[assignment]

    box = Box(items=Loud([1, 2]))
    assert observe(lambda x: type(box.items), ONES).problems == ()


def test_what_cannot_be_observed_is_a_problem_and_not_an_exception() -> None:
    class Key:
        def __hash__(self) -> int:
            if broken:
                raise RuntimeError("no hash today")
            return 1

    broken = False
    box = Box(table={Key(): 1})
    broken = True
    (problem,) = observe(lambda x: type(box.table), ONES).problems
    assert "no hash today" in problem.reason
