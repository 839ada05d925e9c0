"""Every step of a Program is timed, and belongs to a line of the user's."""

from __future__ import annotations

import torch

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.profiler.timing import StepTime, time_steps


def layer(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    hidden = torch.relu(x @ w)
    order = torch.sort(hidden, -1).values
    return order.softmax(-1)


def timed_layer() -> tuple[StepTime, ...]:
    x, w = torch.randn(64, 32), torch.randn(32, 48)
    jitted = dsjit.jit(layer)
    jitted(x, w)
    [tree] = jitted_of(jitted).trees
    inputs = tree.guard.check((x, w), {})
    [found] = tree.compilations
    return time_steps(found.program, found.steps, found.native, inputs, repeats=3)


def test_kernels_products_and_library_calls_are_timed_in_order() -> None:
    times = timed_layer()
    names = [step.name for step in times]
    assert names[0] == "aten.mm.default"
    assert "aten.sort.default" in names or "aten.sort.stable" in names
    assert names[-1].startswith("fused_")
    assert all(step.nanoseconds > 0 for step in times)


def test_each_step_has_its_line() -> None:
    first = layer.__code__.co_firstlineno
    for step in timed_layer():
        assert all(source.file == __file__ and first < source.line <= first + 3 for source in step.sources), step
