"""How much memory a Program takes while it runs, its inputs apart."""

from __future__ import annotations

from collections.abc import Sequence

from dsjit.codegen.placement import Step, holders, last_reads
from dsjit.fusion.planner import LibraryUnit
from dsjit.fusion.views import Views
from dsjit.ir.graph import Graph, Value
from dsjit.ops.properties import shares_memory

__all__ = ["peak_of_tensors"]


def peak_of_tensors(graph: Graph, steps: Sequence[Step], views: Views) -> int:
    """Bytes of the tensors that are alive together at most: results, which are made before the first step unless a
    library call makes them, and what library calls return. The arena is apart from them, and so is what libraries take
    for themselves while they run."""
    aliases: dict[Value, Value] = {}
    made: dict[Value, int] = {}
    for number, step in enumerate(steps):
        if isinstance(step.work, LibraryUnit) and not step.planned:
            node = step.work.node
            if step.work.view or shares_memory(node.op):
                aliases.update((value, node.args[0]) for value in node.outputs)
            else:
                made.update((value, number) for value in node.outputs)
    last = last_reads(graph, steps, views, aliases)
    inputs = {*graph.inputs, *graph.constants}
    results = {holders(value, views, aliases)[-1] for value in graph.outputs} - inputs
    change = [0] * (len(steps) + 2)
    change[0] = sum(value.type.nbytes for value in results if value not in made)
    for value, start in made.items():
        if value.type.device.type == "meta":
            continue
        change[start] += value.type.nbytes
        if value not in results:
            change[max(last.get(value, start), start) + 1] -= value.type.nbytes
    alive = peak = 0
    for step_change in change:
        alive += step_change
        peak = max(peak, alive)
    return peak
