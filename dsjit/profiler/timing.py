"""Times the steps of a compiled Graph, one by one.

The Program is assembled a second time with a clock in it, so that the one in use pays nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dsjit.codegen.assemble import NativePlan, assemble
from dsjit.codegen.clock import StepClock
from dsjit.codegen.llvm.engine import CompiledKernel
from dsjit.codegen.placement import Step
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.views import Views
from dsjit.ir.graph import Graph, Node, Source
from dsjit.ir.print_graph import op_name

__all__ = ["StepTime", "time_steps"]


@dataclass(frozen=True, slots=True)
class StepTime:
    """One step: the kernel's or the op's name, the user's lines that it comes from, and its median time in ns."""

    name: str
    sources: tuple[Source, ...]
    nanoseconds: float


def time_steps(
    graph: Graph,
    steps: Sequence[Step],
    native: Mapping[Node, NativePlan],
    views: Views,
    kernels: Mapping[FusedKernel | Node, CompiledKernel],
    inputs: Sequence[torch.Tensor],
    repeats: int = 10,
) -> tuple[StepTime, ...]:
    """Run the steps `repeats` times on `inputs` and give the median time of each, in the order in which they run.

    The runs are real: what the Graph writes to its inputs is written each time.
    """
    clock = StepClock()
    program = assemble(graph, steps, native, views, kernels, clock)
    runs: list[dict[int, int]] = []
    for _ in range(repeats + 1):
        program(inputs)
        runs.append(clock.nanoseconds())
    return tuple(
        StepTime(*_label(step), statistics.median(run[number] for run in runs[1:])) for number, step in enumerate(steps)
    )


def _label(step: Step) -> tuple[str, tuple[Source, ...]]:
    if isinstance(step.work, FusedKernel):
        return step.work.kernel.name, tuple(dict.fromkeys(node.source for node in step.work.nodes))
    return op_name(step.work.node.op), (step.work.node.source,)
