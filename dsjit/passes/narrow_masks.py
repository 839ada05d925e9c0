"""Keeps random masks of zeros and ones as booleans.

Why: dropout draws its mask as floating-point numbers, and the backward multiplies by it again. What is drawn cannot be
computed again, but all that it holds is whether it is zero: a byte for each element, in place of four.

Before:
    def graph(x0: f32[4, 8]):
        t1 = aten.bernoulli.p(x0, 0.9)
        t2 = aten.div.Scalar(t1, 0.9)
        t3 = aten.mul.Tensor(x0, t2)
        return t3
After:
    def graph(x0: f32[4, 8]):
        t1 = aten.bernoulli.p(x0, 0.9)
        t2 = aten.ne.Scalar(t1, 0)
        t3 = aten._to_copy.default(t2, dtype=torch.float32)
        t4 = aten.div.Scalar(t3, 0.9)
        t5 = aten.mul.Tensor(x0, t4)
        return t5
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch

from dsjit.ir.graph import Graph, Node, Value
from dsjit.passes.rewrite import ops_where, rebuild, substitute

__all__ = ["narrow_masks"]

aten = torch.ops.aten

_ZEROS_AND_ONES: Final = frozenset({aten.bernoulli.p, aten.bernoulli.default})


def narrow_masks(graph: Graph) -> Graph:
    """Everything reads what was drawn through a boolean copy of it. Linear time."""
    drawing = ops_where(graph.nodes, _ZEROS_AND_ONES.__contains__)
    if not drawing:
        return graph
    results = set(graph.results())
    number = graph.next_id()
    mapping: dict[Value, Value] = {}
    nodes: list[Node] = []
    for original in graph.nodes:
        node = substitute(original, mapping)
        nodes.append(node)
        if id(node.op) not in drawing or node.mutates or node.output in results:
            continue
        drawn = node.output
        mask = Value(number, replace(drawn.type, dtype=torch.bool))
        numbers = Value(number + 1, drawn.type)
        number += 2
        nodes.append(Node(aten.ne.Scalar, (drawn, 0), {}, (mask,), node.source))
        nodes.append(Node(aten._to_copy.default, (mask,), {"dtype": drawn.type.dtype}, (numbers,), node.source))
        mapping[drawn] = numbers
    return rebuild(graph, nodes, mapping)
