"""Parts of a Graph, as Graphs of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from dsjit.ir.graph import Graph, Node, Value

__all__ = ["part_of"]


def part_of(graph: Graph, outputs: Iterable[Value], given: Collection[Value], name: str) -> Graph:
    """The Graph of the nodes that compute `outputs` from `given`, and from inputs and constants of `graph`, which
    become inputs too. An output that is given is an input and an output."""
    producers = graph.producers()
    outputs = tuple(dict.fromkeys(outputs))
    nodes: dict[Node, None] = {}
    reached: dict[Value, None] = {}
    pending = list(outputs)
    while pending:
        value = pending.pop()
        if value in reached:
            continue
        reached[value] = None
        node = producers.get(value)
        if node is not None and value not in given and node not in nodes:
            nodes[node] = None
            pending += node.inputs()
    made = {value for node in nodes for value in node.outputs}
    inputs = sorted([value for value in reached if value not in made], key=lambda value: value.id)
    ordered = tuple([node for node in graph.nodes if node in nodes])
    return Graph(tuple(inputs), ordered, outputs, name=name)
