"""What is in memory while a Program runs, by its plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from dsjit.codegen.placement import Home, place_values
from dsjit.codegen.steps import library_aliases
from dsjit.fusion.views import is_view
from dsjit.ir.graph import UNKNOWN_SOURCE, Node, Value
from dsjit.ir.print_graph import op_name
from dsjit.profiler.profile import AliveValue, MemoryProfile
from dsjit.profiler.subject import Subject

__all__ = ["profile_memory"]

ALIVE_SHOWN: Final = 200
"""Values at the peak that are told one by one."""


def profile_memory(subject: Subject) -> MemoryProfile:
    """The memory of one run. Buffers that are taken over in place count once."""
    graph, steps = subject.optimized, subject.steps
    placement = place_values(graph, steps, subject.plan.views, library_aliases(steps))
    producers = {**subject.captured.producers(), **graph.producers()}
    spans: list[tuple[str, Value, int, int, int]] = []
    arena = {place.number: value for value, place in placement.places.items() if place.home is Home.ARENA}
    taken_over = {life.shares: life for life in placement.buffers if life.shares is not None}
    for life in placement.buffers:
        end = life.end if life.key not in taken_over else taken_over[life.key].start - 1
        spans.append(("arena", arena[life.key], life.nbytes, life.start, max(end, life.start)))
    made = {value: number for number, step in enumerate(steps) for value in step.writes}
    for value, last in placement.last_use.items():
        spans.append(("library", value, value.type.nbytes, made[value], last))
    for value in placement.outputs:
        spans.append(("output", value, value.type.nbytes, 0, len(steps)))
    live = [0] * len(steps)
    for _, _, nbytes, start, end in spans:
        for number in range(start, min(end + 1, len(steps))):
            live[number] += nbytes
    peak = max(range(len(live)), key=live.__getitem__) if live else 0
    alive = [_alive(role, value, size, producers) for role, value, size, a, b in spans if a <= peak <= b]
    stored = set(made)
    inside = [value for node in graph.nodes if not is_view(node) for value in node.outputs if value not in stored]
    return MemoryProfile(
        live=tuple(live),
        resident=sum(value.type.nbytes for value in (*graph.inputs, *graph.constants)),
        peak_step=peak,
        peak_bytes=live[peak] if live else 0,
        alive=tuple(sorted(alive, key=lambda each: -each.nbytes)[:ALIVE_SHOWN]),
        arena_bytes=subject.arena_bytes,
        intermediate_bytes=subject.intermediate_bytes,
        fused_bytes=sum(value.type.nbytes for value in inside),
        saved=tuple(_told(subject.saved, "saved", producers)),
        recomputed=tuple([f"{op_name(node.op)} at {node.source}" for node in subject.recomputed]),
    )


def _told(values: Iterable[Value], role: str, producers: Mapping[Value, Node]) -> Iterable[AliveValue]:
    found = [_alive(role, value, value.type.nbytes, producers) for value in values]
    return sorted(found, key=lambda each: -each.nbytes)


def _alive(role: str, value: Value, nbytes: int, producers: Mapping[Value, Node]) -> AliveValue:
    node = producers.get(value)
    source = node.source if node is not None else UNKNOWN_SOURCE
    dtype = str(value.type.dtype).removeprefix("torch.")
    op = op_name(node.op) if node is not None else "input"
    return AliveValue(role, nbytes, value.type.shape, dtype, op, source.file if source.line else "", source.line)
