"""How much memory a Program takes while it runs, its inputs apart: told from its plan, before anything is compiled."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from dsjit.codegen.low_memory import LARGE_BUFFER, LowMemory, MemorySchedule, memory_schedule
from dsjit.codegen.memory_plan import last_uses, plan_memory
from dsjit.codegen.placement import Placement, Step, place_values
from dsjit.codegen.steps import library_aliases
from dsjit.fusion.views import Views
from dsjit.ir.graph import Graph, Node, Value

__all__ = ["Footprint", "Timeline", "footprint", "memory_timeline"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes. arena: which lives on after the run. tensors: of all others that are alive together at most (results,
    large buffers, what library calls return, released inputs). What libraries take for themselves is not counted."""

    arena: int
    tensors: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """Bytes alive at each step of a Program, and after the last.

    arena: of buffers in the arena. tensors: of all others, as in a Footprint. released: of each input that is let go,
    by its number, the step that reads it last.
    """

    arena: tuple[int, ...]
    tensors: tuple[int, ...]
    released: Mapping[int, int]


def footprint(
    graph: Graph, steps: Sequence[Step], native: Container[Node], views: Views, low_memory: LowMemory
) -> Footprint:
    """Of the Program that `assemble` makes of the same arguments for the CPU."""
    placement, plan = _plans(graph, steps, native, views, low_memory)
    tensors = _tensors_alive(graph, steps, views, low_memory, placement, plan)
    return Footprint(plan_memory(placement.buffers).nbytes, max(tensors))


def memory_timeline(
    graph: Graph, steps: Sequence[Step], native: Container[Node], views: Views, low_memory: LowMemory
) -> Timeline:
    """Of the same Program."""
    placement, plan = _plans(graph, steps, native, views, low_memory)
    last = last_uses(placement.buffers)
    owners = [life for life in placement.buffers if life.shares is None]
    arena = _alive(len(steps), [(life.nbytes, life.start, last[life.key]) for life in owners])
    tensors = _tensors_alive(graph, steps, views, low_memory, placement, plan)
    released = {number: step for step, numbers in plan.left.items() for number in numbers}
    return Timeline(arena, tensors, released)


def _plans(
    graph: Graph, steps: Sequence[Step], native: Container[Node], views: Views, low_memory: LowMemory
) -> tuple[Placement, MemorySchedule]:
    aliases = library_aliases(steps)
    placement = place_values(graph, steps, views, aliases, native, apart=LARGE_BUFFER)
    return placement, memory_schedule(graph, steps, views, aliases, placement, low_memory)


def _tensors_alive(
    graph: Graph,
    steps: Sequence[Step],
    views: Views,
    low_memory: LowMemory,
    placement: Placement,
    plan: MemorySchedule,
) -> tuple[int, ...]:
    aliases = library_aliases(steps)
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
    return _alive(end, [(value.type.nbytes, start, dies.get(value, end)) for value, start in born.items()])


def _alive(end: int, lives: Iterable[tuple[int, int, int]]) -> tuple[int, ...]:
    """By step. lives: bytes, and the first and the last step."""
    change = [0] * (end + 2)
    for nbytes, start, last in lives:
        change[start] += nbytes
        change[last + 1] -= nbytes
    return tuple(accumulate(change[:-1]))
