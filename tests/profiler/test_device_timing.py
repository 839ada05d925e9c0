"""Steps on a GPU are timed by events, which nobody waits for while the program runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import dsjit
from dsjit.api.compile import Compilation, StageTimer
from dsjit.api.compile_gpu import compile_gpu_graph
from dsjit.api.entry import session
from dsjit.config import Environment
from dsjit.trace.capture import capture
from tests.codegen.triton.machines import ClockEvent, InterpretingDriver, interpreting_machine
from tests.profiler.programs import MACHINE


def block(x: Tensor, w: Tensor) -> Tensor:
    order = (x * 2 + w).sort(-1).values
    return order.exp() * w


@pytest.fixture
def compiled() -> Iterator[tuple[Compilation, list[Tensor]]]:
    """A program that this process knows, for a machine that stands for a GPU, and its inputs."""
    captured = capture(block, (torch.randn(8, 16), torch.randn(8, 16)), {}, "block")
    (segment,) = captured.segments
    machine = interpreting_machine(InterpretingDriver())
    compilation = compile_gpu_graph(segment.graph, "eager", Environment(), machine, StageTimer(), None)
    session().programs["a program on a GPU"] = compilation
    yield compilation, list(captured.given)
    del session().programs["a program on a GPU"]


def profiled(compilation: Compilation, inputs: list[Tensor], runs: int) -> dsjit.Profile:
    found = dsjit.Profile("on a GPU", machine=MACHINE)
    with found:
        for _ in range(runs):
            compilation.program(inputs)
    return found


def test_each_step_is_counted_and_timed_by_events(compiled: tuple[Compilation, list[Tensor]]) -> None:
    data = profiled(*compiled, runs=3).data
    assert [(step.kind, step.device, step.count) for step in data.steps] == [
        ("kernel", "gpu", 3), ("library", "gpu", 3), ("kernel", "gpu", 3),
    ]  # fmt: skip
    assert all(0 < step.min_ns <= step.median_ns for step in data.steps)
    (program,) = data.programs
    assert program.total_ns == pytest.approx(sum(step.total_ns + step.launch_ns for step in data.steps))
    assert data.attributed_ns == pytest.approx(data.compiled_ns)
    assert {line.line for line in data.lines} == {block.__code__.co_firstlineno + n for n in (1, 2)}


def test_nobody_waits_while_it_runs(compiled: tuple[Compilation, list[Tensor]]) -> None:
    compilation, inputs = compiled
    with dsjit.Profile(machine=MACHINE):
        before = ClockEvent.waited
        for _ in range(5):
            compilation.program(inputs)
        assert ClockEvent.waited == before
    assert ClockEvent.waited == before + 1


def test_the_host_is_told_apart(compiled: tuple[Compilation, list[Tensor]]) -> None:
    data = profiled(*compiled, runs=3).data
    parts = {part.name: part.ns for part in data.parts}
    assert parts["queueing work for a GPU"] > 0 and parts["kernels and library calls"] == 0
    assert sum(parts.values()) == pytest.approx(data.span_ns, rel=1e-6)


def test_kernels_are_told_in_triton(compiled: tuple[Compilation, list[Tensor]]) -> None:
    data = profiled(*compiled, runs=1).data
    kernels = [step for step in data.steps if step.kind == "kernel"]
    assert all("@triton.jit" in step.triton and step.name in step.triton and not step.llvm for step in kernels)
    assert all(step.bound == "nothing" and step.bandwidth > 0 for step in kernels)


def test_results_and_programs_are_the_same_with_a_profile(compiled: tuple[Compilation, list[Tensor]]) -> None:
    compilation, inputs = compiled
    (expected,) = compilation.program(inputs)
    with dsjit.Profile(machine=MACHINE):
        (found,) = compilation.program(inputs)
    assert torch.equal(found, expected)
    assert all(each.run is each.function for each in compilation.program.streams.values())
