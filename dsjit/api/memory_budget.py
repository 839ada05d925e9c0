"""What a training call keeps and computes again, so that it takes no more memory than it may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from dsjit.codegen.footprint import Footprint
from dsjit.errors import MemoryBudgetError
from dsjit.ir.graph import Graph, Node, Source
from dsjit.ir.joint_graph import JointGraph
from dsjit.ir.print_graph import op_name
from dsjit.passes.partition import Partition, can_compute_again, partition
from dsjit.passes.recompute_cost import recompute_seconds
from dsjit.passes.segments import forward_nodes, segments

__all__ = ["Kept", "TrainingMemory", "TrainingPlan", "kept_values", "plan_training"]

SEGMENTS: Final = (16, 32, 8, 64, 4)
"""Into how many parts a forward is cut, to compute some of them again; the first number that suffices is taken. More
parts leave more between them to be kept, fewer take more memory for each one."""

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
    """What to keep, and what the call and its backward then take."""

    partition: Partition
    memory: TrainingMemory


Predict: TypeAlias = Callable[[Graph, frozenset[int]], Footprint]
"""Of a half, whose inputs of these numbers are released."""


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


def plan_training(joint: JointGraph, budget: int, predict: Predict) -> TrainingPlan:
    """A plan that keeps to `budget` bytes, and of those with as many segments the one that computes the least again.

    The first segments of the forward are computed again, each when the backward comes to it, as what is kept of them is
    kept longest (Chen et al., 2016). How many is found by trial, of which nothing is compiled: what is predicted is
    what the plans of the Programs' memory say.

    Raises MemoryBudgetError, which names the smallest budget that a plan was found for.
    """
    nodes = forward_nodes(joint)
    plain = _planned(joint, nodes, 1, 0, budget, predict)
    if plain.memory.peak <= budget:
        return plain
    smallest = plain.memory.peak
    for count in SEGMENTS:
        parts = len(segments(joint.graph, nodes, count))
        if parts < count // 2 or len(nodes) < NODES_PER_SEGMENT * count:
            continue
        fitting = None
        for plan in _trials(joint, nodes, count, parts, budget, plain.memory.peak, predict):
            smallest = min(smallest, plan.memory.peak)
            if plan.memory.peak <= budget:
                fitting = plan  # each that fits computes less again than those before
        if fitting is not None:
            return fitting
    raise MemoryBudgetError(
        f"{joint.graph.name} cannot keep to memory_budget={budget} bytes: a call and its backward take "
        f"{plain.memory.peak} bytes beyond the arguments when nothing is computed again, and {smallest} bytes at "
        f"least; use memory_budget={smallest} or more, or smaller inputs (at {nodes[0].source})"
    )


def _trials(
    joint: JointGraph, nodes: list[Node], count: int, parts: int, budget: int, most: int, predict: Predict
) -> Iterator[TrainingPlan]:
    """Plans for one number of segments: all but the last computed again, then as few as seem to fit.

    most: the peak when nothing is.
    """
    low, high = 0, parts - 1
    plan = _planned(joint, nodes, count, high, budget, predict)
    yield plan
    if plan.memory.peak > budget:
        return
    least, above = plan.memory.peak, most
    for _ in range(STEPS):
        if high - low < 2:
            return
        share = (above - budget) / max(above - least, 1)
        guess = min(max(low + round(share * (high - low)), low + 1), high - 1)
        plan = _planned(joint, nodes, count, guess, budget, predict)
        yield plan
        if plan.memory.peak <= budget:
            high, least = guess, plan.memory.peak
        else:
            low, above = guess, plan.memory.peak


def _planned(
    joint: JointGraph, nodes: list[Node], count: int, recomputed: int, budget: int, predict: Predict
) -> TrainingPlan:
    chosen = segments(joint.graph, nodes, count)[:recomputed]
    halves = partition(joint, chosen)
    forward, backward = predict(halves.forward, frozenset()), predict(halves.backward, halves.released)
    results = set(joint.graph.outputs[: joint.results])
    kept = sum(
        value.type.nbytes for value in halves.kept if value not in halves.shared and value not in joint.graph.inputs
    )
    returned = sum(value.type.nbytes for value in results)
    # One arena serves both, and each half frees what it has made but for its results and what is kept.
    peak = max(forward.arena, backward.arena) + max(forward.tensors, returned + backward.tensors)
    early = {value for node in nodes for value in node.outputs}
    again = [node for node in halves.backward.nodes if not early.isdisjoint(node.outputs)]
    seconds = sum(recompute_seconds(node) for node in again if not can_compute_again(node))
    return TrainingPlan(halves, TrainingMemory(kept, peak, count, recomputed, seconds, budget))
