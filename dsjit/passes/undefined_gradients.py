"""A backward for calls in which some results get no gradient.

Why: a model returns logits and a loss, and only the loss is differentiated. Autograd then hands on no gradient for the
logits, and parameters that only they depend on get none (`.grad` stays None). The backward is linear in the gradients
of results, so what comes from missing ones alone is left out, and sums lose the missing operand.

Before:
    def graph(x0: f32[4], x1: f32[4], x2: f32[4]):
        t3 = aten.mul.Tensor(x1, x0)
        t4 = aten.exp.default(x0)
        t5 = aten.mul.Tensor(x2, t4)
        t6 = aten.add.Tensor(t3, t5)
        return t3, t6
After:
    def graph(x0: f32[4], x1: f32[4]):
        t2 = aten.exp.default(x0)
        t3 = aten.mul.Tensor(x1, t2)
        return t3
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from dsjit.ir.graph import Graph, Node, Value
from dsjit.passes.dce import eliminate_dead_code
from dsjit.passes.rewrite import inputs_of, substitute

__all__ = ["without_gradients"]

aten = torch.ops.aten


def without_gradients(
    backward: Graph, tangents: Collection[Value], missing: Collection[Value]
) -> tuple[Graph, tuple[int | None, ...]]:
    """The Graph without the inputs `missing` (some of the gradients of results, `tangents`), and where each of the
    outputs is among those of the new Graph: None for those that are missing with them."""
    zero = set(missing)
    linear = set(tangents)
    renamed: dict[Value, Value] = {}
    nodes: list[Node] = []
    number = backward.next_id()
    for node in backward.nodes:
        read = [value for value in inputs_of(node) if value in linear]
        if read:
            linear.update(node.outputs)
        if read and zero.issuperset(read):
            zero.update(node.outputs)
            continue
        absent = [value for value in read if value in zero]
        if absent and node.op is aten.add.Tensor and node.kwargs.get("alpha", 1) == 1:
            left, right = node.args[0], node.args[1]
            other = right if left in zero else left
            if isinstance(other, Value) and other.type == node.output.type:
                renamed[node.output] = renamed.get(other, other)
                continue
        fresh: dict[Value, Value] = {}
        for value in dict.fromkeys(absent):
            fresh[value] = Value(number, value.type)
            number += 1
            made = {"dtype": value.type.dtype, "device": value.type.device}
            nodes.append(Node(aten.full.default, (value.type.shape, 0.0), made, (fresh[value],), node.source))
        nodes.append(substitute(node, {**renamed, **fresh}))
    outputs: list[Value] = []
    places: list[int | None] = []
    for value in backward.outputs:
        if value in zero:
            places.append(None)
            continue
        places.append(len(outputs))
        outputs.append(renamed.get(value, value))
    inputs = tuple([value for value in backward.inputs if value not in missing])
    graph = replace(backward, inputs=inputs, nodes=tuple(nodes), outputs=tuple(outputs))
    return eliminate_dead_code(graph), tuple(places)
