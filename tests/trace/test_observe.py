"""Paths of what existed, and that the Observer leaves no trace itself."""

from __future__ import annotations

import io
import sys
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dsjit.errors import CaptureError
from dsjit.trace.observe import Observer
from dsjit.trace.reads.patching import PATCHED_NAMES, PATCHES
from tests.trace.observing import ONES, Box, observe

WEIGHT = torch.ones(3)


def test_paths_of_tensors() -> None:
    closed = torch.ones(3)
    layer = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    box = Box(items=[torch.ones(3)], table={"k": torch.ones(3)})

    def function(x: Any, *, y: torch.Tensor) -> Any:
        return layer(x[0]) + closed + WEIGHT + box.items[0] + box.table["k"] + y

    observer = observe(function, [ONES], y=ONES * 2)
    paths = {str(path) for path, *_ in observer.tensors_met()}
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
    assert str(observe(layer, ONES).path_of(layer)) == "self"
    assert str(observe(layer.forward, ONES).path_of(layer[0])) == "self[0]"


def test_a_tensor_born_in_the_call_has_no_path() -> None:
    born: list[torch.Tensor] = []
    box = Box()

    def function(x: torch.Tensor) -> None:
        other = Box(value=x * 2)
        born.append(other.value)

    observer = observe(function, ONES)
    assert observer.path_of(born[0]) is None
    assert observer.path_of(box) is None


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
