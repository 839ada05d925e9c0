"""What a training call takes when parts of its forward are computed again: told from the plan that keeps them all.

Why: to lower both halves for each choice of parts takes as long as it takes to compile them. But a choice changes
little: what is kept of a part; what is made again, next to what the backward of the part has in memory anyway; and
time. So the parts are chosen by a sum, and what was chosen is lowered once, to tell what it takes.

Which parts: those that save the most bytes for a second of computing again, of those that are still kept when the peak
is reached, until the sum is small enough. Jain et al., "Checkmate" (MLSys 2020), state the problem for single values,
and solve it as an integer program.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from dsjit.codegen.footprint import Footprint, Timeline
from dsjit.codegen.low_memory import LARGE_BUFFER
from dsjit.ir.graph import Node, Value
from dsjit.ir.joint_graph import JointGraph
from dsjit.passes.partition import Partition, can_compute_again, kept_for
from dsjit.passes.recompute_cost import recompute_seconds
from dsjit.passes.rewrite import inputs_of

__all__ = ["Choice", "MemoryModel", "memory_model"]

FREE: Final = 1e-6
"""Seconds that it takes at least to compute a part again."""


@dataclass(frozen=True, slots=True)
class SegmentMemory:
    """Bytes of one part of the forward.

    kept: of what it makes, for the backward. entries: of that and of what other parts need of it, what is kept when it
    is computed again. small, large: what is then made again, in the arena and as tensors of their own.
    arena, tensors: while its backward runs, at most, with nothing computed again; what is kept is not in it.
    seconds: modelled, to compute it again.
    """

    kept: int
    entries: int
    small: int
    large: int
    arena: int
    tensors: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Which parts, by number, are computed again; `peak` bytes are then taken, `seconds` spent, by the model."""

    chosen: tuple[int, ...]
    peak: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Of a forward in `segments`, each of which `parts` tells of. forward: when nothing is computed again.
    returned: bytes of the results.
    untouched: bytes that are kept whatever is chosen. crowding: of the arena, over the bytes alive in it at most.
    alone: alive at most once the backward has let go of the arena, what is kept for the first part included."""

    segments: Sequence[Sequence[Node]]
    parts: tuple[SegmentMemory, ...]
    forward: Footprint
    returned: int
    untouched: int
    crowding: float
    alone: int

    def peak(self, chosen: Collection[int]) -> int:
        """Bytes."""
        return self._critical(chosen)[0]

    def choose(self, limit: int) -> Choice:
        """The parts that keep the peak to `limit` in little time; or, when none do, those that take the least."""
        chosen: list[int] = []
        peak, critical = self._critical(chosen)
        least = self._choice(chosen)
        while peak > limit:
            worthwhile = [number for number in range(critical + 1) if self._gain(number) > 0 and number not in chosen]
            if not worthwhile:
                return least
            chosen.append(max(worthwhile, key=lambda number: self._gain(number) / self.parts[number].seconds))
            peak, critical = self._critical(chosen)
            if peak < least.peak:
                least = self._choice(chosen)
        for number in sorted(chosen, key=lambda number: self.parts[number].seconds, reverse=True):
            others = [other for other in chosen if other != number]
            if self.peak(others) <= limit:
                chosen = others
        return self._choice(chosen)

    def _choice(self, chosen: Collection[int]) -> Choice:
        seconds = sum(self.parts[number].seconds for number in chosen)
        return Choice(tuple(sorted(chosen)), self.peak(chosen), seconds)

    def _gain(self, number: int) -> int:
        return self.parts[number].kept - self.parts[number].entries

    def _critical(self, chosen: Collection[int]) -> tuple[int, int]:
        """The peak, and the part in whose backward it is reached, as far as what is kept matters; the last one when it
        is in the forward."""
        kept, tensors, arena, critical = self.untouched, 0, 0, 0
        again = set(chosen)
        for number, part in enumerate(self.parts):
            kept += part.entries if number in again else part.kept
            here = kept + part.tensors + (part.large if number in again else 0)
            if here >= tensors:
                tensors, critical = here, number
            arena = max(arena, part.arena + (part.small if number in again else 0))
        saved = sum(self._gain(number) for number in again)
        ahead = self.forward.tensors - saved
        if ahead > self.returned + tensors:
            critical = len(self.parts) - 1
        peak = max(self.forward.arena, round(self.crowding * arena)) + max(ahead, self.returned + tensors)
        alone = max(self.forward.alone - saved, self.returned + self.alone)
        return (alone, 0) if alone > peak else (peak, critical)


def memory_model(
    joint: JointGraph,
    parts: Sequence[Sequence[Node]],
    plain: Partition,
    footprints: tuple[Footprint, Footprint],
    backward: Timeline,
) -> MemoryModel:
    """parts: of the forward, all of it. plain: computes nothing again; footprints: of its halves, backward: of that.

    Takes a minimum cut, and is linear in nodes beside it.
    """
    graph = joint.graph
    number_of = {value: number for number, nodes in enumerate(parts) for node in nodes for value in node.outputs}
    kept: list[list[Value]] = [[] for _ in parts]
    entries: list[set[Value]] = [set() for _ in parts]
    last = [0] * len(parts)
    for place, value in enumerate(plain.kept):
        if value in number_of and value not in plain.shared:
            kept[number_of[value]].append(value)
            last[number_of[value]] = max(last[number_of[value]], backward.released.get(place, 0))
    for value in kept_for(joint, parts):
        if value in number_of and value not in plain.shared:
            entries[number_of[value]].add(value)
    others = _without_inputs(backward, [value.type.nbytes for value in plain.kept], plain.released)
    held = len(others) if backward.arena_ends is None else backward.arena_ends + 1
    found: list[SegmentMemory] = []
    start = 0
    producers = graph.producers()
    for number in reversed(range(len(parts))):
        end = max(last[number], start) if number else len(others) - 1
        again = [value for value in kept[number] if value not in entries[number]]
        large = sum(value.type.nbytes for value in again if value.type.nbytes >= LARGE_BUFFER)
        made = sum(value.type.nbytes for value in again)
        found.append(
            SegmentMemory(
                kept=sum(value.type.nbytes for value in kept[number]),
                entries=sum(value.type.nbytes for value in entries[number]),
                small=made - large,
                large=large,
                arena=max(backward.arena[start : end + 1]),
                tensors=max(others[start : min(end + 1, held)], default=0),
                seconds=FREE + _seconds(again, parts[number], entries[number], producers),
            )
        )
        start = end
    own = sum(value.type.nbytes for value in plain.own)
    result_bytes = sum(value.type.nbytes for value in set(graph.outputs[: joint.results]))
    return MemoryModel(
        segments=parts,
        parts=tuple(reversed(found)),
        forward=footprints[0],
        returned=result_bytes,
        untouched=own - sum(part.kept for part in found),
        crowding=footprints[1].arena / max(max(backward.arena), 1),
        alone=max(backward.tensors[held:], default=0),
    )


def _without_inputs(backward: Timeline, sizes: Sequence[int], released: Collection[int]) -> list[int]:
    """By step: bytes of tensors that are no released inputs."""
    found = list(backward.tensors)
    for number in released:
        for step in range(backward.released.get(number, len(found) - 1) + 1):
            found[step] -= sizes[number]
    return found


def _seconds(
    again: Collection[Value], nodes: Sequence[Node], entries: Collection[Value], producers: dict[Value, Node]
) -> float:
    """Modelled time to make the values `again`, of this part, from what enters it."""
    mine = set(nodes)
    wanted = {producers[value]: None for value in again}
    stack = list(wanted)
    while stack:
        for value in inputs_of(stack.pop()):
            node = producers.get(value)
            if node is not None and node in mine and value not in entries and node not in wanted:
                wanted[node] = None
                stack.append(node)
    return sum(recompute_seconds(node) for node in wanted if not can_compute_again(node))
