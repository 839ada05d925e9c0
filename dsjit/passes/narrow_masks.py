"""Draws random masks of zeros and ones as booleans.

Why: dropout draws its mask as floating-point numbers, and the backward multiplies by it again. What is drawn cannot be
computed again, but all that it holds is whether it is zero: a byte for each element, in place of four. Where one number
says how likely a one is, booleans are drawn in the first place (`ops/masks.py`).

Before:
    def graph(x0: f32[4, 8], x1: f32[4, 8]):
        t2 = aten.bernoulli.p(x0, 0.9)
        t3 = aten.div.Scalar(t2, 0.9)
        t4 = aten.mul.Tensor(x0, t3)
        t5 = aten.bernoulli.default(x1)
        t6 = aten.mul.Tensor(t4, t5)
        return t6
After:
    def graph(x0: f32[4, 8], x1: f32[4, 8]):
        t2 = draw_mask([4, 8], 0.9)
        t3 = aten._to_copy.default(t2, dtype=torch.float32)
        t4 = aten.div.Scalar(t3, 0.9)
        t5 = aten.mul.Tensor(x0, t4)
        t6 = aten.bernoulli.default(x1)
        t7 = aten.ne.Scalar(t6, 0)
        t8 = aten._to_copy.default(t7, dtype=torch.float32)
        t9 = aten.mul.Tensor(t5, t8)
        return t9
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch

from dsjit.ir.graph import Graph, Node, Value
from dsjit.ops.masks import draw_mask
from dsjit.passes.rewrite import inputs_of, ops_where, rebuild, substitute

__all__ = ["narrow_masks"]

aten = torch.ops.aten

_ZEROS_AND_ONES: Final = frozenset({aten.bernoulli.p, aten.bernoulli.default})


def narrow_masks(graph: Graph) -> Graph:
    """Everything reads what was drawn through booleans. Linear time."""
    drawing = ops_where(graph.nodes, _ZEROS_AND_ONES.__contains__)
    if not drawing:
        return graph
    as_numbers = {
        value for node in graph.nodes if not _compares_with_zero(node) for value in inputs_of(node)
    }.difference(graph.results())
    number = graph.next_id()
    mapping: dict[Value, Value] = {}
    nodes: list[Node] = []
    for original in graph.nodes:
        node = substitute(original, mapping)
        if id(node.op) not in drawing or node.mutates or node.output not in as_numbers:
            nodes.append(node)
            continue
        drawn = node.output
        mask = Value(number, replace(drawn.type, dtype=torch.bool))
        numbers = Value(number + 1, drawn.type)
        number += 2
        if _draws_as_one(node):
            likely = (drawn.type.shape, node.args[1])
            nodes.append(Node(draw_mask, likely, {}, (mask,), node.source, effect=node.effect))
        else:
            nodes.append(node)
            nodes.append(Node(aten.ne.Scalar, (drawn, 0), {}, (mask,), node.source))
        nodes.append(Node(aten._to_copy.default, (mask,), {"dtype": drawn.type.dtype}, (numbers,), node.source))
        mapping[drawn] = numbers
    return rebuild(graph, nodes, mapping)


def _compares_with_zero(node: Node) -> bool:
    """Whether it is one of those that this pass writes."""
    return node.op is aten.ne.Scalar and node.args[1] == 0


def _draws_as_one(node: Node) -> bool:
    """Whether `draw_mask` draws the same: with one probability, the default generator, and in the same order."""
    if node.op is not aten.bernoulli.p or node.kwargs or len(node.args) != 2 or not isinstance(node.args[1], float):
        return False
    shape_of, drawn = node.args[0].type, node.output.type
    return drawn.device.type == "cpu" and drawn.is_contiguous and shape_of.is_contiguous
