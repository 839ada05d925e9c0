"""When a Program that is to take little memory makes, lets go, stores and fetches its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Final

from dsjit.codegen.memory_plan import last_uses
from dsjit.codegen.offload.stores import OffloadTier
from dsjit.codegen.placement import Home, Place, Placement, Step, holders, last_reads
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.views import Views
from dsjit.ir.graph import Graph, Value

__all__ = [
    "LARGE_BUFFER",
    "WORTH_A_BREAK",
    "LowMemory",
    "MemorySchedule",
    "bytes_alive",
    "memory_schedule",
    "tensors_alive",
]

LARGE_BUFFER: Final = 32 * 2**20
"""Bytes of a buffer that is a tensor of its own, rather than a part of the arena, which lives on from run to run.
Making it costs the page faults that eager pays for each of its tensors."""

WORTH_A_BREAK: Final = 256 * 1024
"""Bytes to be freed, or not to be taken yet, for which a native sequence is broken (one more call, of about 2 us)."""


WORTH_A_RELEASE: Final = 1 / 8
"""Of the arena's bytes: the least by which the peak has to become lower for the arena to be let go. Taking it again
costs its page faults."""


@dataclass(frozen=True, slots=True)
class LowMemory:
    """For a Program that takes little memory at once: results and large buffers are made when they are first written.

    released: numbers of inputs that are let go after their last use, as large buffers are. A caller that hands them
        over, as an iterator that holds none, has their memory free for what follows.
    stored: numbers of outputs that are put into `tier` after their last use; a KeptTensor stands for each. fetched:
        numbers of inputs that come as such, and are fetched just before their first use.
    handed_on: numbers of outputs that go to another Program, and to nobody who would write to them.
    """

    released: frozenset[int] = frozenset()
    stored: frozenset[int] = frozenset()
    fetched: frozenset[int] = frozenset()
    tier: OffloadTier | None = None
    handed_on: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class MemorySchedule:
    """By step. Before it: `fetched` inputs; `made`, the results and large buffers that it is the first to write. After
    it: `left`, the inputs that are let go; `stored` outputs, those that no other result shares memory with (others are
    stored at the end).

    arena_ends: the step after which the arena is let go, where what follows would make the peak; else None."""

    fetched: dict[int, list[int]] = field(default_factory=dict)
    made: dict[int, list[Value]] = field(default_factory=dict)
    left: dict[int, list[int]] = field(default_factory=dict)
    stored: dict[int, list[int]] = field(default_factory=dict)
    arena_ends: int | None = None


def memory_schedule(
    graph: Graph,
    steps: Sequence[Step],
    views: Views,
    aliases: Mapping[Value, Value],
    placement: Placement,
    low_memory: LowMemory,
) -> MemorySchedule:
    """placement, aliases: of the same steps; large buffers are tensors of their own."""
    found = MemorySchedule()
    first, last = _uses(steps, views, aliases)
    for number in sorted(low_memory.fetched, key=lambda number: first.get(graph.inputs[number], len(steps))):
        if graph.inputs[number] in first:
            found.fetched.setdefault(first[graph.inputs[number]], []).append(number)
    read = last_reads(graph, steps, views, aliases)
    for number in sorted(low_memory.released):
        if (step := read.get(graph.inputs[number], 0)) < len(steps):
            found.left.setdefault(step, []).append(number)
    made: set[Place] = set()
    for number, each in enumerate(steps):
        for value in each.writes:
            place = placement.places[value]
            own = place.home is Home.OUTPUT or (
                place == Place(Home.LIBRARY, value.id) and (isinstance(each.work, FusedKernel) or each.planned)
            )
            if own and place not in made:
                made.add(place)
                value = placement.outputs[place.number] if place.home is Home.OUTPUT else value
                before = number if placement.all_made is None else min(number, placement.all_made)
                found.made.setdefault(before, []).append(value)
    owners = [holders(value, views, aliases)[-1] for value in graph.outputs]
    shared = Counter(owners)
    untouched = {*graph.inputs, *graph.constants, *[write.value for write in graph.writes]}
    for number in sorted(low_memory.stored):
        value = graph.outputs[number]
        if owners[number] is not value or shared[value] > 1 or value in untouched or value not in last:
            continue
        if placement.places[value].home in (Home.OUTPUT, Home.LIBRARY):
            found.stored.setdefault(last[value], []).append(number)
    tensors = tensors_alive(graph, steps, aliases, placement, low_memory, found)
    return replace(found, arena_ends=_arena_ends(placement, tensors))


def _arena_ends(placement: Placement, tensors: Sequence[int]) -> int | None:
    """tensors: bytes of all others, by step."""
    ends = max([life.end for life in placement.buffers], default=len(tensors))
    if ends + 1 >= len(tensors):
        return None
    last = last_uses(placement.buffers)
    owners = [life for life in placement.buffers if life.shares is None]
    arena = max(bytes_alive(len(tensors), [(life.nbytes, life.start, last[life.key]) for life in owners]))
    gain = min(arena, max(tensors[ends + 1 :]) - max(tensors[: ends + 1]))
    return ends if gain >= max(WORTH_A_BREAK, WORTH_A_RELEASE * arena) else None


def _uses(
    steps: Sequence[Step], views: Views, aliases: Mapping[Value, Value]
) -> tuple[dict[Value, int], dict[Value, int]]:
    """The first and the last step that reads or writes each Value, or a view of it."""
    first: dict[Value, int] = {}
    last: dict[Value, int] = {}
    for number, step in enumerate(steps):
        for value in (*step.reads, *step.writes):
            for holder in holders(value, views, aliases):
                first.setdefault(holder, number)
                last[holder] = number
    return first, last


def tensors_alive(
    graph: Graph,
    steps: Sequence[Step],
    aliases: Mapping[Value, Value],
    placement: Placement,
    low_memory: LowMemory,
    plan: MemorySchedule,
) -> tuple[int, ...]:
    """Bytes of all tensors of the Program but its arena, by step and after the last."""
    end = len(steps)
    born: dict[Value, int] = {}
    for number, values in plan.made.items():
        born.update((value, number) for value in values)
    for number, step in enumerate(steps):
        for value in step.writes:
            if value in placement.last_use and value not in aliases and value.type.device.type != "meta":
                born.setdefault(value, number)
    dies = {value: placement.last_use.get(value, end) for value in born}
    dies.update((graph.outputs[output], number) for number, outputs in plan.stored.items() for output in outputs)
    born.update((graph.inputs[number], 0) for number in low_memory.released)
    dies.update((graph.inputs[number], step) for step, numbers in plan.left.items() for number in numbers)
    fetched = [(step, number) for step in sorted(plan.fetched) for number in plan.fetched[step]]
    # Each is read from the file while the one before is used.
    for (before, _), (_, number) in pairwise([(0, -1), *fetched]):
        born[graph.inputs[number]] = before
    return bytes_alive(end, [(value.type.nbytes, start, dies.get(value, end)) for value, start in born.items()])


def bytes_alive(end: int, lives: Iterable[tuple[int, int, int]]) -> tuple[int, ...]:
    """By step. lives: bytes, and the first and the last step."""
    change = [0] * (end + 2)
    for nbytes, start, last in lives:
        change[start] += nbytes
        change[last + 1] -= nbytes
    return tuple(accumulate(change[:-1]))
