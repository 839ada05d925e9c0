"""One traced call: the function runs once and for real, and what it gave can be had again from the capture."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dsjit.passes.reference import run_reference
from dsjit.trace.capture import Capture, capture
from tests.api.checks import assert_same


def captured(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Capture:
    return capture(function, args, kwargs, "f")


def again(found: Capture, *args: Any, **kwargs: Any) -> Any:
    """The result of a later call, from a capture of one segment: what a compiled call does, in the slow way."""
    (segment,) = found.segments
    assert found.guard is not None and found.recipe is not None
    inputs = found.guard.check(args, kwargs)
    assert inputs is not None, found.guard.why_not(args, kwargs)
    known = dict(zip(found.inputs, inputs, strict=True))
    tensors = [known[number] for number in segment.reads]
    return found.recipe.finish(tensors, run_reference(segment.graph, tensors), (args, kwargs))


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 2.0), requires_grad=False)
        self.shift = 1.0

    def forward(self, x: torch.Tensor, *, twice: bool = False) -> torch.Tensor:
        y = x * self.weight + self.shift
        return y * 2 if twice else y


def test_the_function_runs_once_and_its_result_is_handed_through() -> None:
    results: list[torch.Tensor] = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        results.append(x + 1)
        return results[-1]

    found = captured(counted, torch.ones(3))
    assert len(results) == 1
    assert found.result is results[0]


def test_what_the_function_raises_is_raised_and_the_next_capture_is_none_the_worse() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            raise KeyError("too long")
        return x + 1

    with pytest.raises(KeyError, match="too long"):
        captured(function, torch.ones(3))
    assert captured(function, torch.ones(2)).problems == ()


@pytest.mark.parametrize(
    ("function", "args", "later"),
    [
        (lambda x: x.exp(), (torch.zeros(3),), (torch.ones(3),)),
        (lambda x, y: y - x, (torch.zeros(3), torch.ones(3)), (torch.ones(3), torch.zeros(3))),
        (lambda x: {"sum": x.sum(0), "rest": [x[1:], (x, 3)]}, (torch.zeros(2, 3),), (torch.ones(2, 3),)),
        (lambda x: x, (torch.zeros(3),), (torch.ones(3),)),
        (lambda x: (x.t(), x.t()), (torch.zeros(2, 3),), (torch.ones(2, 3),)),
        (lambda pair: pair[0] @ pair[1], ([torch.ones(2, 2), torch.ones(2, 2)],), ([torch.eye(2), torch.eye(2)],)),
        (lambda x: None, (torch.zeros(3),), (torch.ones(3),)),
        (lambda x, n: (n, x * n), (torch.zeros(3), 3), (torch.ones(3), 3)),
    ],
    ids=["one tensor", "two inputs", "nested", "the argument", "views", "inputs in a list", "nothing", "a number"],
)
def test_segments_guard_and_recipe_give_a_later_call_its_result(function: Any, args: Any, later: Any) -> None:
    found = captured(function, *args)
    assert found.problems == ()
    assert_same(again(found, *later), function(*later))


def test_a_result_that_is_an_argument_is_that_argument() -> None:
    found = captured(lambda x: (x + 1, x), torch.zeros(3))
    later = torch.ones(3)
    assert again(found, later)[1] is later


def test_a_module_is_run_with_what_it_holds_at_the_later_call() -> None:
    module = Affine()
    found = captured(module, torch.zeros(3), twice=True)
    module.weight = nn.Parameter(torch.full((3,), 5.0), requires_grad=False)
    assert torch.equal(again(found, torch.ones(3), twice=True), torch.full((3,), 12.0))


def test_inputs_name_the_values_of_the_guards_tensors_in_its_order() -> None:
    module = Affine()
    x = torch.zeros(3)
    found = captured(module, x)
    (segment,) = found.segments
    assert found.guard is not None
    tensors = found.guard.check((x,), {})
    assert tensors is not None and {id(t) for t in tensors} == {id(x), id(module.weight)}
    assert sorted(found.inputs) == sorted(segment.reads)


def test_the_last_of_several_segments_has_no_look() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x

    found = captured(function, torch.ones(3))
    assert [segment.look is None for segment in found.segments] == [False, True]


def test_what_stands_in_the_way_leaves_no_segments_but_the_result_and_a_guard() -> None:
    def function(x: torch.Tensor, flag: bool) -> torch.Tensor:
        if flag:
            x.numpy()
        return x + 1

    found = captured(function, torch.ones(3), True)
    assert torch.equal(found.result, torch.full((3,), 2.0))
    assert found.segments == () and found.recipe is None
    assert [problem.source.file for problem in found.problems] == [__file__]
    assert found.guard is not None
    assert found.guard.check((torch.ones(3), True), {}) is not None
    assert found.guard.check((torch.ones(3), False), {}) is None


def test_a_problem_is_told_with_its_reason_and_line() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x + time.time()

    (problem,) = captured(function, torch.ones(3)).problems
    assert problem.reason == "reads a clock" and not problem.passing
    assert problem.source.line == function.__code__.co_firstlineno + 1


def test_under_a_mode_of_others_the_call_just_runs() -> None:
    class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    with Mode():  # type: ignore[no-untyped-call]
        found = captured(lambda x: x + 1, torch.ones(3))
    assert torch.equal(found.result, torch.full((3,), 2.0))
    assert found.guard is None and found.segments == ()
    assert found.problems[0].passing and "TorchDispatchMode" in found.problems[0].reason


def test_results_that_cannot_be_made_again_are_a_problem() -> None:
    found = captured(lambda x: iter([x + 1]), torch.ones(3))
    assert next(found.result).tolist() == [2.0, 2.0, 2.0]
    assert found.segments == () and found.problems
