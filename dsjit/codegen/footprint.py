"""How much memory a Program takes while it runs, its inputs apart: told from its plan, before anything is compiled."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from dsjit.codegen.assemble import LARGE_BUFFER, library_aliases
from dsjit.codegen.memory_plan import plan_memory
from dsjit.codegen.placement import Home, Step, last_reads, place_values
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
    graph: Graph, steps: Sequence[Step], native: Container[Node], views: Views, released: frozenset[int]
) -> Footprint:
    """Of the Program that `assemble` makes of the same arguments for the CPU."""
    aliases = library_aliases(steps)
    placement = place_values(graph, steps, views, aliases, native, apart=LARGE_BUFFER)
    last = last_reads(graph, steps, views, aliases)
    change = [0] * (len(steps) + 2)

    def alive(value: Value, start: int, end: int) -> None:
        change[start] += value.type.nbytes
        if end < len(steps):
            change[end + 1] -= value.type.nbytes

    for number in released:
        alive(graph.inputs[number], 0, last.get(graph.inputs[number], 0))
    made: set[int] = set()
    for number, step in enumerate(steps):
        for value in step.writes:
            place = placement.places[value]
            if place.home is Home.OUTPUT and place.number not in made:
                made.add(place.number)
                alive(placement.outputs[place.number], number, len(steps))
            elif value in placement.last_use and value not in aliases and value.type.device.type != "meta":
                alive(value, number, placement.last_use[value])
    now = peak = 0
    for step_change in change:
        now += step_change
        peak = max(peak, now)
    return Footprint(plan_memory(placement.buffers).nbytes, peak)
