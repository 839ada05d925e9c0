"""Adds the gradient of an embedding to another gradient of its weight, row by row, where it has few rows.

Why: weights that embedding and output layer share get two gradients, and eager makes a whole one of each, most of
whose rows are zeros in the embedding's, and a third for the sum. Only the rows of words that were met change. They are
added to where the other gradient is, so that neither of the two is in memory.

Before:
    def graph(x0: f32[64, 8], x1: f32[4, 8], x2: i64[4]):
        t3 = aten.exp.default(x0)
        t4 = aten.embedding_dense_backward.default(x1, x2, 64, -1, False)
        t5 = aten.add.Tensor(t3, t4)
        return t5
After:
    def graph(x0: f32[64, 8], x1: f32[4, 8], x2: i64[4]):
        t3 = aten.exp.default(x0)
        t4 = add_embedding_gradient(t3, x1, x2, -1, False)
        return t4
"""

from __future__ import annotations

from typing import Final

import torch

from dsjit.ir.graph import Graph, Node, Value
from dsjit.ops.embedding_gradient import add_embedding_gradient
from dsjit.passes.dce import eliminate_dead_code
from dsjit.passes.rewrite import rebuild

__all__ = ["add_embedding_gradients"]

aten = torch.ops.aten

FEW: Final = 1 / 4
"""Of the bytes of the whole gradient: so many at most has that of the rows that were looked up."""


def add_embedding_gradients(graph: Graph) -> Graph:
    """Each sum of such a gradient, which nothing else reads, and something. Linear time."""
    dense = {node.output: node for node in graph.nodes if node.op is aten.embedding_dense_backward.default}
    if not dense:
        return graph
    users, results = graph.users(), set(graph.results())
    sparse = {value for value, node in dense.items() if len(users.get(value, ())) == 1 and value not in results}
    nodes = [_in_rows(node, dense, sparse) or node for node in graph.nodes]
    if all(new is node for new, node in zip(nodes, graph.nodes, strict=True)):
        return graph
    return eliminate_dead_code(rebuild(graph, nodes, {}))


def _in_rows(node: Node, dense: dict[Value, Node], sparse: set[Value]) -> Node | None:
    """sparse: gradients of embeddings that one node reads."""
    if node.op is not aten.add.Tensor or node.kwargs or not all(isinstance(arg, Value) for arg in node.args):
        return None
    for value, other in (node.args[::-1], node.args):
        if value not in sparse or value is other or other.type != node.output.type or value.type != node.output.type:
            continue
        gradient, indices, _, padding_idx, scale = dense[value].args
        if gradient.type.nbytes <= FEW * value.type.nbytes:
            args = (other, gradient, indices, padding_idx, scale)
            return Node(add_embedding_gradient, args, {}, node.outputs, node.source)
    return None
