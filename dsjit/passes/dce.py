"""Dead code elimination.

Why: a trace records whatever the Python code ran, also what nobody reads (`detach`s, unused results of other passes).
Nodes with an effect stay, and so does what may refuse its operands (an index out of range), and whatever an output, a
write or a check reads. A node with several outputs stays
when one of them is read. Constants that nothing reads are dropped.

Before:
    def graph(x0: f32[4]):
        t1 = aten.exp.default(x0)
        t2 = aten.neg.default(x0)
        return t2
After:
    def graph(x0: f32[4]):
        t1 = aten.neg.default(x0)
        return t1
"""

from __future__ import annotations

from dataclasses import replace

from dsjit.ir.graph import Graph, Node
from dsjit.ops.properties import may_raise
from dsjit.passes.rewrite import inputs_of

__all__ = ["eliminate_dead_code"]


def eliminate_dead_code(graph: Graph) -> Graph:
    """The Graph without the nodes and constants whose results nothing needs. Linear time."""
    live = set(graph.results())
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.effect or may_raise(node) or not live.isdisjoint(node.outputs):
            kept.append(node)
            live.update(inputs_of(node))
    constants = {value: tensor for value, tensor in graph.constants.items() if value in live}
    if len(kept) == len(graph.nodes) and len(constants) == len(graph.constants):
        return graph
    kept.reverse()
    return replace(graph, nodes=tuple(kept), constants=constants)
