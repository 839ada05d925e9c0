"""How much memory a Program takes while it runs, its inputs apart: told from its plan, before anything is compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dsjit.codegen.low_memory import (
    LARGE_BUFFER,
    LowMemory,
    MemorySchedule,
    bytes_alive,
    memory_schedule,
    tensors_alive,
)
from dsjit.codegen.memory_plan import last_uses, plan_memory
from dsjit.codegen.placement import Placement, Step, place_values
from dsjit.codegen.steps import NativePlan, library_aliases, never_raising
from dsjit.fusion.views import Views
from dsjit.ir.graph import Graph, Node

__all__ = ["Footprint", "Timeline", "footprint", "memory_timeline"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes. arena: which lives on after the run, unless it is let go. tensors: of all others that are alive together
    with it at most (results, large buffers, what library calls return, released inputs). alone: of these, once it was
    let go. What libraries take for themselves is not counted."""

    arena: int
    tensors: int
    alone: int = 0


@dataclass(frozen=True, slots=True)
class Timeline:
    """Bytes alive at each step of a Program, and after the last.

    arena: of buffers in the arena. tensors: of all others, as in a Footprint. released: of each input that is let go,
    by its number, the step that reads it last. arena_ends: the step after which the arena is let go, if it is.
    """

    arena: tuple[int, ...]
    tensors: tuple[int, ...]
    released: Mapping[int, int]
    arena_ends: int | None = None


def footprint(
    graph: Graph, steps: Sequence[Step], native: Mapping[Node, NativePlan], views: Views, low_memory: LowMemory
) -> Footprint:
    """Of the Program that `assemble` makes of the same arguments for the CPU."""
    placement, plan = _plans(graph, steps, native, views, low_memory)
    tensors = tensors_alive(graph, steps, library_aliases(steps), placement, low_memory, plan)
    arena = plan_memory(placement.buffers).nbytes
    if plan.arena_ends is None:
        return Footprint(arena, max(tensors))
    return Footprint(arena, max(tensors[: plan.arena_ends + 1]), max(tensors[plan.arena_ends + 1 :]))


def memory_timeline(
    graph: Graph, steps: Sequence[Step], native: Mapping[Node, NativePlan], views: Views, low_memory: LowMemory
) -> Timeline:
    """Of the same Program."""
    placement, plan = _plans(graph, steps, native, views, low_memory)
    last = last_uses(placement.buffers)
    owners = [life for life in placement.buffers if life.shares is None]
    arena = bytes_alive(len(steps), [(life.nbytes, life.start, last[life.key]) for life in owners])
    tensors = tensors_alive(graph, steps, library_aliases(steps), placement, low_memory, plan)
    released = {number: step for step, numbers in plan.left.items() for number in numbers}
    return Timeline(arena, tensors, released, plan.arena_ends)


def _plans(
    graph: Graph, steps: Sequence[Step], native: Mapping[Node, NativePlan], views: Views, low_memory: LowMemory
) -> tuple[Placement, MemorySchedule]:
    aliases = library_aliases(steps)
    placement = place_values(graph, steps, views, aliases, never_raising(native), apart=LARGE_BUFFER)
    return placement, memory_schedule(graph, steps, views, aliases, placement, low_memory)
