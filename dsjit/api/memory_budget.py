"""What a training call keeps and computes again, so that it takes no more memory than it may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from dsjit.api.compile import Compilation
from dsjit.codegen.footprint import peak_of_tensors
from dsjit.errors import MemoryBudgetError
from dsjit.ir.graph import Graph, Node, Source
from dsjit.ir.joint_graph import JointGraph
from dsjit.ir.print_graph import op_name
from dsjit.passes.kept_layouts import keep_channels_last
from dsjit.passes.partition import Partition, can_compute_again, partition
from dsjit.passes.recompute_cost import recompute_seconds
from dsjit.passes.segments import forward_nodes, segments

__all__ = ["Kept", "TrainingMemory", "TrainingPlan", "kept_values", "plan_training"]

SEGMENTS: Final = (4, 8, 16, 32, 64)
"""Into how many parts a forward is cut, to compute some of them again."""

NODES_PER_SEGMENT: Final = 8
"""A part has at least so many nodes."""

STEPS: Final = 3
"""How often the number of parts that are computed again is corrected, after a first guess."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A value that is kept for the backward and that nobody else holds. source: the line that made it."""

    op: str
    source: Source
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Predicted bytes, the arguments of the call apart.

    kept: by nobody but the backward. peak: of all that the call and its backward take together, at most: results, what
        is kept, gradients (all that the backward returns), working memory.
    segments, recomputed: parts of the forward, and how many of them, the first ones, the backward computes again.
    seconds: modelled time that computing again takes; what is free inside kernels is not counted.
    budget: what was allowed.
    """

    kept: int
    peak: int
    segments: int
    recomputed: int
    seconds: float
    budget: int


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The halves, compiled, and what they take."""

    partition: Partition
    forward: Compilation
    backward: Compilation
    memory: TrainingMemory


def kept_values(joint: JointGraph, halves: Partition) -> tuple[Kept, ...]:
    """What is kept besides arguments and results of the call, largest first."""
    producers = joint.graph.producers()
    primals = set(joint.graph.inputs)
    found = [
        Kept(op_name(producers[value].op), producers[value].source, value.type.shape, value.type.nbytes)
        for value in halves.kept
        if value not in halves.shared and value not in primals
    ]
    return tuple(sorted(found, key=lambda kept: -kept.nbytes))


def plan_training(joint: JointGraph, budget: int, compile: Callable[[Graph], Compilation]) -> TrainingPlan:
    """Of the plans that keep to `budget` bytes, the one that computes the least again (by modelled time).

    The first segments of the forward are computed again, as their results are kept longest; how many is found by trial,
    each trial being compiled: what is predicted is what the Programs' memory plans say.

    Raises MemoryBudgetError, which names the smallest budget that a plan was found for.
    """
    nodes = forward_nodes(joint)
    plain = _planned(joint, nodes, 1, 0, budget, compile)
    if plain.memory.peak <= budget:
        return plain
    fitting: list[TrainingPlan] = []
    smallest = plain.memory.peak
    for count in SEGMENTS:
        parts = len(segments(joint.graph, nodes, count))
        if parts < count // 2 or len(nodes) < NODES_PER_SEGMENT * count:
            break
        for plan in _trials(joint, nodes, count, parts, budget, plain.memory.peak, compile):
            smallest = min(smallest, plan.memory.peak)
            if plan.memory.peak <= budget:
                fitting.append(plan)
    if not fitting:
        raise MemoryBudgetError(
            f"{joint.graph.name} cannot keep to memory_budget={budget} bytes: a call and its backward take "
            f"{plain.memory.peak} bytes beyond the arguments when nothing is computed again, and {smallest} bytes at "
            f"least; use memory_budget={smallest} or more, or smaller inputs (at {nodes[0].source})"
        )
    return min(fitting, key=lambda plan: plan.memory.seconds)


def _trials(
    joint: JointGraph,
    nodes: list[Node],
    count: int,
    parts: int,
    budget: int,
    most: int,
    compile: Callable[[Graph], Compilation],
) -> Iterator[TrainingPlan]:
    """Plans for one number of segments: all but the last computed again, then as few as seem to fit."""
    low, high = 0, parts - 1
    plan = _planned(joint, nodes, count, high, budget, compile)
    yield plan
    if plan.memory.peak > budget:
        return
    least, above = plan.memory.peak, most
    for _ in range(STEPS):
        if high - low < 2:
            return
        share = (above - budget) / max(above - least, 1)
        guess = min(max(low + round(share * (high - low)), low + 1), high - 1)
        plan = _planned(joint, nodes, count, guess, budget, compile)
        yield plan
        if plan.memory.peak <= budget:
            high, least = guess, plan.memory.peak
        else:
            low, above = guess, plan.memory.peak


def _planned(
    joint: JointGraph,
    nodes: list[Node],
    count: int,
    recomputed: int,
    budget: int,
    compile: Callable[[Graph], Compilation],
) -> TrainingPlan:
    chosen = segments(joint.graph, nodes, count)[:recomputed]
    halves = keep_channels_last(partition(joint, chosen))
    forward, backward = compile(halves.forward), compile(halves.backward)
    results = set(joint.graph.outputs[: joint.results])
    kept = sum(
        value.type.nbytes for value in halves.kept if value not in halves.shared and value not in joint.graph.inputs
    )
    returned = sum(value.type.nbytes for value in results)
    during_forward = forward.program.arena_bytes + _tensors(forward)
    during_backward = forward.program.arena_bytes + returned + kept + backward.program.arena_bytes + _tensors(backward)
    early = {value for node in nodes for value in node.outputs}
    again = [node for node in halves.backward.nodes if not early.isdisjoint(node.outputs)]
    seconds = sum(recompute_seconds(node) for node in again if not can_compute_again(node))
    memory = TrainingMemory(kept, max(during_forward, during_backward), max(count, 1), recomputed, seconds, budget)
    return TrainingPlan(halves, forward, backward, memory)


def _tensors(compilation: Compilation) -> int:
    return peak_of_tensors(compilation.optimized, compilation.steps, compilation.plan.views)
