"""How much memory a Program takes while it runs, its inputs apart: told from its plan, before anything is compiled."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dsjit.codegen.low_memory import LARGE_BUFFER, LowMemory, memory_schedule
from dsjit.codegen.memory_plan import plan_memory
from dsjit.codegen.placement import Step, place_values
from dsjit.codegen.steps import library_aliases
from dsjit.fusion.views import Views
from dsjit.ir.graph import Graph, Node, Value

__all__ = ["Footprint", "footprint"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes. arena: which lives on after the run. tensors: of all others that are alive together at most (results,
    large buffers, what library calls return, released inputs). What libraries take for themselves is not counted."""

    arena: int
    tensors: int


def footprint(
    graph: Graph, steps: Sequence[Step], native: Container[Node], views: Views, low_memory: LowMemory
) -> Footprint:
    """Of the Program that `assemble` makes of the same arguments for the CPU."""
    aliases = library_aliases(steps)
    placement = place_values(graph, steps, views, aliases, native, apart=LARGE_BUFFER)
    plan = memory_schedule(graph, steps, views, aliases, placement, low_memory)
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
    change = [0] * (end + 2)
    for value, start in born.items():
        change[start] += value.type.nbytes
        change[dies.get(value, end) + 1] -= value.type.nbytes
    now = peak = 0
    for step_change in change:
        now += step_change
        peak = max(peak, now)
    return Footprint(plan_memory(placement.buffers).nbytes, peak)
