"""Cuts a whole training step in two, where its backward begins.

Why: in one Program, whatever the backward reads lives from where the forward made it. Cut in two, what is free inside
a fused kernel is computed again (`passes/partition.py`): the halves are Graphs of their own, so nothing makes one value
of what both compute.

Before:
    def graph(x0: f32[4, 8], x1: f32[8, 8]):
        t2 = aten.mm.default(x0, x1)
        t3 = aten.exp.default(t2)
        t4 = aten.sigmoid.default(t3)
        t5 = aten.mm.default(t4, x1)
        t6 = aten.sigmoid_backward.default(t5, t4)
        t7 = aten.mul.Tensor(t6, t3)
        return t7
After:
    def graph(x0: f32[4, 8], x1: f32[8, 8]):
        t2 = aten.mm.default(x0, x1)
        t3 = aten.exp.default(t2)
        t4 = aten.sigmoid.default(t3)
        t5 = aten.mm.default(t4, x1)
        return t3, t5
    def graph_backward(x0: f32[4, 8], x1: f32[8, 8], x2: f32[4, 8], x3: f32[4, 8]):
        t4 = aten.sigmoid.default(x2)
        t5 = aten.sigmoid_backward.default(x3, t4)
        t6 = aten.mul.Tensor(t5, x2)
        return t6
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dsjit.ir.graph import Graph, Value
from dsjit.ops.properties import may_raise, shares_memory
from dsjit.passes.dce import eliminate_dead_code
from dsjit.passes.partition import Partition, cheapest_to_keep, nodes_leading_to
from dsjit.passes.rewrite import inputs_of

__all__ = ["split_step"]

WORTH_A_SPLIT: Final = 4 * 2**20
"""Bytes that need not live from the forward to the backward, for which a step becomes two Programs."""


def split_step(captured: Graph, passes: Callable[[Graph], Graph]) -> Partition | None:
    """The halves of a step as it was recorded; None when it has no backward, or too little is saved. The backward takes
    what the step takes, and then what is kept; it returns what the step returns, and writes what the step writes.

    passes: what goes ahead, so that what is free to compute again shows.
    """
    behind = next((number for number, node in enumerate(captured.nodes) if _is_backward(node.op)), None)
    if behind is None or _bytes_across(captured, behind) < WORTH_A_SPLIT:
        return None
    marks = {value for node in captured.nodes[behind:] for value in node.outputs}
    graph = passes(captured)
    start = next((number for number, node in enumerate(graph.nodes) if not marks.isdisjoint(node.outputs)), None)
    return None if start is None else _split_at(graph, start)


def _is_backward(op: Callable[..., Any]) -> bool:
    return "_backward" in str(getattr(op, "_name", ""))


def _across(graph: Graph, start: int) -> list[Value]:
    """What nodes before the `start`-th make, and later ones, or the caller, read."""
    late = graph.nodes[start:]
    made = {value for node in graph.nodes[:start] for value in node.outputs}
    read = dict.fromkeys([*graph.results(), *[value for node in late for value in inputs_of(node)]])
    return [value for value in read if value in made]


def _bytes_across(graph: Graph, start: int) -> int:
    return sum(value.type.nbytes for value in _across(graph, start))


def _split_at(graph: Graph, start: int) -> Partition | None:
    needed = _across(graph, start)
    early, behind = graph.nodes[:start], graph.nodes[start:]
    producers = {value: node for node in early for value in node.outputs}
    if any(value in producers and shares_memory(producers[value].op) for value in graph.outputs):
        return None  # a view of what the forward made would be returned as a tensor of its own
    inputs = set(graph.inputs)
    kept = cheapest_to_keep(graph, needed, inputs)
    own = tuple([value for node in early for value in node.outputs if value in kept])
    if sum(value.type.nbytes for value in needed) - sum(value.type.nbytes for value in own) < WORTH_A_SPLIT:
        return None
    late = {value for node in behind for value in node.outputs}
    must_run = [value for node in behind if node.effect or may_raise(node) for value in node.outputs]
    again = nodes_leading_to(graph, {*own, *inputs}, [*graph.results(), *must_run], late)
    forward = Graph(graph.inputs, early, own, (), graph.constants, graph.name)
    backward = Graph(
        (*graph.inputs, *own), tuple(again), graph.outputs, graph.writes, graph.constants, f"{graph.name}_backward"
    )
    return Partition(eliminate_dead_code(forward), eliminate_dead_code(backward), own, frozenset())
