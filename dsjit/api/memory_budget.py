"""What a training call keeps and computes again, so that it takes no more memory than it may."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from dsjit.api.compile import Lowered
from dsjit.api.memory_model import MemoryModel, memory_model
from dsjit.codegen.footprint import Footprint
from dsjit.codegen.low_memory import LowMemory
from dsjit.codegen.offload.stores import HOST_MEMORY, OffloadTier
from dsjit.errors import MemoryBudgetError
from dsjit.ir.graph import Graph, Node, Source, Value
from dsjit.ir.joint_graph import JointGraph
from dsjit.ir.print_graph import op_name
from dsjit.passes.partition import Partition, can_compute_again, partition
from dsjit.passes.pipeline import hand_over
from dsjit.passes.recompute_cost import recompute_seconds
from dsjit.passes.segments import forward_nodes, segments

__all__ = [
    "Kept",
    "RecomputedPart",
    "TrainingMemory",
    "TrainingPlan",
    "kept_values",
    "low_memory",
    "offloadable",
    "plan_training",
    "training_memory",
]

SEGMENTS: Final = (4, 6, 8, 12, 16, 24, 32)
"""Into how many parts a forward may be cut, to compute some of them again. More parts leave more between them to be
kept, fewer take more memory for each one."""

NODES_PER_SEGMENT: Final = 8
"""A part has at least so many nodes."""

OFFLOAD_BYTES: Final = 2**20
"""What is smaller is kept in memory."""

TRIALS: Final = 4
"""How many choices are lowered, at most, to know what they take."""

LEAST: Final = 2
"""Of how many numbers of parts the choice that takes the least is lowered, when no other keeps to the budget."""

NEAR: Final = 0.03
"""What may be left of a budget, as a share of it, when there may be a choice that takes a little less time."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A value that is kept for the backward and that nobody else holds. source: the line that made it. place: where it
    is."""

    op: str
    source: Source
    shape: tuple[int, ...]
    nbytes: int
    place: str = "memory"


@dataclass(frozen=True, slots=True)
class RecomputedPart:
    """Of the forward. first, last: lines of the ops that it begins and ends with. ops: how many there are. seconds:
    modelled, to compute again what the backward wants of them."""

    first: Source
    last: Source
    ops: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Predicted bytes, the arguments of the call apart.

    kept: by nobody but the backward. peak: of all that the call and its backward take together, at most: results, what
        is kept, gradients (all that the backward returns), working memory.
    segments, recomputed: parts of the forward, and how many of them the backward computes again.
    seconds: modelled time that computing again takes (what is free inside kernels is not counted), and offloading.
    budget: what was allowed, if anything was said. offloaded: bytes that go to the tier of this name meanwhile.
    parts: that are computed again, in the order of the forward.
    """

    kept: int
    peak: int
    segments: int
    recomputed: int
    seconds: float
    budget: int | None
    offloaded: int = 0
    tier: str = ""
    parts: tuple[RecomputedPart, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What to keep, and what the call and its backward then take. lowered: both halves."""

    partition: Partition
    memory: TrainingMemory
    forward: LowMemory
    backward: LowMemory
    lowered: tuple[Lowered, Lowered]


Lower: TypeAlias = Callable[[Graph], Lowered]
"""A half."""


def kept_values(
    joint: JointGraph, halves: Partition, stored: Collection[Value], tier: OffloadTier | None
) -> tuple[Kept, ...]:
    """What is kept besides arguments and results of the call, largest first. stored: in the tier."""
    producers, made = joint.graph.producers(), halves.forward.producers()
    primals = set(joint.graph.inputs)
    found: list[Kept] = []
    for value, output in zip(halves.own, halves.forward.outputs[joint.results :], strict=True):
        if value in primals:
            continue
        # What `hand_over` hands over is a copy of what was made, or its bits.
        node = producers[value] if value in producers else producers[made[output].args[0]]
        place = tier.name if tier is not None and value in stored else "memory"
        found.append(Kept(op_name(node.op), node.source, value.type.shape, value.type.nbytes, place))
    return tuple(sorted(found, key=lambda kept: -kept.nbytes))


def low_memory(
    halves: Partition, results: int, stored: Collection[Value], tier: OffloadTier | None
) -> tuple[LowMemory, LowMemory]:
    """For a forward of so many results, and its backward. stored: what of `halves.own` goes to the tier."""
    outputs = [results + number for number, value in enumerate(halves.own) if value in stored]
    inputs = [number for number, value in enumerate(halves.kept) if value in stored]
    return (
        LowMemory(stored=frozenset(outputs), tier=tier, handed_on=frozenset(range(results, results + len(halves.own)))),
        LowMemory(halves.released, fetched=frozenset(inputs), tier=tier),
    )


def offloadable(halves: Partition, tier: OffloadTier) -> tuple[Value, ...]:
    """What is kept, is large enough, is not there already, and nobody else holds: what is kept longest first."""
    large = [value for value in halves.own if value.type.nbytes >= OFFLOAD_BYTES]
    return tuple([value for value in large if tier is not HOST_MEMORY or value.type.device.type != "cpu"])


def plan_training(joint: JointGraph, budget: int, lower: Lower, tier: OffloadTier | None = None) -> TrainingPlan:
    """A plan that keeps to `budget` bytes, and of those one that computes little again.

    Segments of the forward are computed again, each when the backward comes to it (Chen et al., 2016). Which ones, a
    model of the memory says (`memory_model`); what it chose is lowered, which tells what it takes, and chosen anew by
    as much as the model was off.
    tier: where what is kept may go; then the faster of both ways is taken, by modelled time.

    Raises MemoryBudgetError, which names the smallest budget that a plan was found for.
    """
    planner = _Planner(joint, forward_nodes(joint), budget, lower)
    plain = planner.plan([planner.nodes], ())
    if plain.memory.peak <= budget:
        return plain
    least = [plain]
    if tier is not None:
        least.append(planner.offload(plain, tier))
    models = planner.models(plain)
    tried = [*least, *planner.trials(models)]
    if min(plan.memory.peak for plan in tried) > budget:
        least += planner.least(models)
        tried = least
    fitting = [plan for plan in tried if plan.memory.peak <= budget]
    if fitting:
        return min(fitting, key=lambda plan: plan.memory.seconds)
    smallest = min(plan.memory.peak for plan in least)  # what is tried depends on the budget
    raise MemoryBudgetError(
        f"{joint.graph.name} cannot keep to memory_budget={budget} bytes: a call and its backward take "
        f"{plain.memory.peak} bytes beyond the arguments when nothing is computed again, and {smallest} bytes at "
        f"least; use memory_budget={smallest} or more, or smaller inputs (at {planner.nodes[0].source})"
    )


@dataclass(frozen=True, slots=True)
class _Planner:
    """nodes: of the forward."""

    joint: JointGraph
    nodes: list[Node]
    budget: int
    lower: Lower

    def models(self, plain: TrainingPlan) -> list[MemoryModel]:
        """One for each number of segments."""
        found: list[MemoryModel] = []
        footprints = (plain.lowered[0].footprint(plain.forward), plain.lowered[1].footprint(plain.backward))
        timeline = plain.lowered[1].timeline(plain.backward)
        halves = partition(self.joint)
        for count in SEGMENTS:
            parts = segments(self.joint.graph, self.nodes, count, halves.own)
            if len(parts) > count // 2 and len(self.nodes) >= NODES_PER_SEGMENT * count:
                found.append(memory_model(self.joint, parts, halves, footprints, timeline))
        return found

    def trials(self, models: Sequence[MemoryModel]) -> Iterator[TrainingPlan]:
        """Plans that compute segments again, until one comes near the budget, or none is expected to keep to it."""
        limit = self.budget
        seen: set[tuple[int, tuple[int, ...]]] = set()
        for _ in range(TRIALS):
            choices = [(model, model.choose(limit)) for model in models]
            fitting = [each for each in choices if each[1].peak <= limit]
            if not fitting:
                return
            model, choice = min(fitting, key=lambda each: each[1].seconds)
            if (len(model.parts), choice.chosen) in seen:
                return
            seen.add((len(model.parts), choice.chosen))
            plan = self.plan(model.segments, choice.chosen)
            yield plan
            room = self.budget - plan.memory.peak
            if 0 <= room <= NEAR * self.budget:
                return
            limit = choice.peak + room

    def least(self, models: Sequence[MemoryModel]) -> Iterator[TrainingPlan]:
        """Plans that take as little memory as the models can tell."""
        choices = [(model, model.choose(0)) for model in models]
        for model, choice in sorted(choices, key=lambda each: each[1].peak)[:LEAST]:
            yield self.plan(model.segments, choice.chosen)

    def plan(self, parts: Sequence[Sequence[Node]], chosen: Sequence[int]) -> TrainingPlan:
        """Of the forward in these parts, the chosen ones are computed again."""
        again = [parts[number] for number in chosen]
        halves = hand_over(partition(self.joint, again))
        lowered = self.lower(halves.forward), self.lower(halves.backward)
        return self._planned(halves, lowered, again, len(parts), (), None)

    def offload(self, plain: TrainingPlan, tier: OffloadTier) -> TrainingPlan:
        """As little as suffices goes to the tier, or all that can."""
        halves, lowered = plain.partition, plain.lowered
        values = offloadable(halves, tier)
        low, high = 0, len(values)  # the first is too little
        best = self._planned(halves, lowered, (), 1, values, tier)
        if best.memory.peak > self.budget:
            return best
        while high - low > 1:
            middle = (low + high) // 2
            plan = self._planned(halves, lowered, (), 1, values[:middle], tier)
            if plan.memory.peak <= self.budget:
                high, best = middle, plan
            else:
                low = middle
        return best

    def _planned(
        self,
        halves: Partition,
        lowered: tuple[Lowered, Lowered],
        chosen: Sequence[Sequence[Node]],
        count: int,
        stored: Collection[Value],
        tier: OffloadTier | None,
    ) -> TrainingPlan:
        ways = low_memory(halves, self.joint.results, stored, tier)
        forward, backward = (half.footprint(way) for half, way in zip(lowered, ways, strict=True))
        memory = training_memory(self.joint, halves, forward, backward, self.nodes)
        offloaded = sum(value.type.nbytes for value in stored)
        found = replace(
            memory,
            kept=memory.kept - offloaded,
            segments=count,
            recomputed=len(chosen),
            seconds=memory.seconds + (2 * offloaded / tier.bytes_per_second if tier is not None else 0.0),
            budget=self.budget,
            offloaded=offloaded,
            tier=tier.name if tier is not None else "",
            parts=tuple([_part(halves, nodes) for nodes in chosen]),
        )
        return TrainingPlan(halves, found, *ways, lowered)


def training_memory(
    joint: JointGraph, halves: Partition, forward: Footprint, backward: Footprint, nodes: Sequence[Node]
) -> TrainingMemory:
    """Without a budget. nodes: of the joint graph's forward."""
    kept = sum(value.type.nbytes for value in halves.own if value not in joint.graph.inputs)
    returned = sum(value.type.nbytes for value in set(joint.graph.outputs[: joint.results]))
    # One arena serves both, and each half frees what it has made but for its results and what is kept.
    with_arena = max(forward.arena, backward.arena) + max(forward.tensors, returned + backward.tensors)
    peak = max(with_arena, forward.alone, returned + backward.alone)
    return TrainingMemory(kept, peak, 1, 0, _seconds_again(halves, nodes), None)


def _part(halves: Partition, nodes: Sequence[Node]) -> RecomputedPart:
    return RecomputedPart(nodes[0].source, nodes[-1].source, len(nodes), _seconds_again(halves, nodes))


def _seconds_again(halves: Partition, nodes: Sequence[Node]) -> float:
    """Modelled time of what the backward computes again of these nodes."""
    early = set(nodes)
    again = [node for node in halves.backward.nodes if node in early]
    return sum(recompute_seconds(node) for node in again if not can_compute_again(node))
