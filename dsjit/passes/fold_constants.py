"""Constant folding.

Why: masks, positions and tables are built anew on each call from nothing but numbers (`arange`, `triu(ones)`,
comparisons of these). What depends on no input is computed once, at compile time, by torch itself.

- A result whose elements are all the same bits becomes a `full` node: a number inside whatever kernel reads it.
  `full`, `zeros`, `ones` and the like stay nodes for that reason, unless only library calls read them.
- Results over `limit` bytes stay nodes: they would cost memory for as long as the program lives.
- What the caller gets to see stays a node: a constant must not be handed out to someone who may write to it.

Before:
    def graph(x0: f32[4]):
        t1 = aten.arange.default(4, dtype=torch.float32)
        t2 = aten.mul.Tensor(t1, 2)
        t3 = aten.add.Tensor(x0, t2)
        return t3
After:
    def graph(x0: f32[4], *, c1: f32[4]):
        t2 = aten.add.Tensor(x0, c1)
        return t2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import torch

from dsjit.ir.graph import Arg, Graph, Node, Value
from dsjit.ops.properties import is_reproducible, shares_memory
from dsjit.ops.table import rule_of
from dsjit.passes.reference import evaluate_node
from dsjit.passes.rewrite import inputs_of
from dsjit.passes.storage import Storages

__all__ = ["FOLD_LIMIT", "fold_constants"]

FOLD_LIMIT: Final[int] = 1 << 20
"""The largest result, in bytes, that is kept as a constant of the Graph."""

aten = torch.ops.aten

_UNIFORM: Final[dict[Any, Callable[[tuple[Arg, ...]], Arg]]] = {
    aten.full.default: lambda args: args[1],
    aten.full_like.default: lambda args: args[1],
    aten.new_full.default: lambda args: args[2],
    aten.new_ones.default: lambda args: 1,
    aten.new_zeros.default: lambda args: 0,
    aten.ones.default: lambda args: 1,
    aten.ones_like.default: lambda args: 1,
    aten.scalar_tensor.default: lambda args: args[0],
    aten.zeros.default: lambda args: 0,
    aten.zeros_like.default: lambda args: 0,
}
"""Factories whose elements are all one number (they read no element of a tensor argument): which number."""


def fold_constants(graph: Graph, *, limit: int = FOLD_LIMIT) -> Graph:
    """The Graph with the results (of at most `limit` bytes) that depend on no input computed now.

    An op that raises when evaluated stays where it is, to raise when the program runs.
    """
    known: dict[Value, torch.Tensor | Node] = {
        value: tensor for value, tensor in graph.constants.items() if value.type.nbytes <= limit
    }
    storages: Storages | None = None
    constants: dict[Value, torch.Tensor] = {}
    uniform = _numbers_in_kernels(graph)
    nodes = list(uniform.values())
    for node in graph.nodes:
        number = _UNIFORM.get(node.op)
        if number is None and not _is_known(node, known, limit):
            nodes.append(node)
            continue
        storages = storages or Storages(graph)
        if any(storages.escapes(value) for value in node.outputs):
            nodes.append(node)
        elif number is not None:
            value = node.output
            filled = _full(value, number(node.args), node) if value.type.is_contiguous else node
            nodes.append(filled)
            if filled.op is aten.full.default:
                uniform[value] = filled
                if value.type.nbytes <= limit:
                    known[value] = filled
        else:
            results = _evaluate(node, known)
            if results is None:
                nodes.append(node)
                continue
            for value, tensor in zip(node.outputs, results, strict=True):
                known[value] = tensor
                scalar = _uniform_value(value, tensor)
                if scalar is None:
                    constants[value] = tensor
                else:
                    uniform[value] = _full(value, scalar, node)
                    nodes.append(uniform[value])
    if not uniform and not constants:
        return graph
    nodes, stored = _settle_uniform(nodes, uniform, known)
    read = {value for node in nodes for value in inputs_of(node)}
    read.update(graph.results())
    kept = {value: tensor for value, tensor in (constants | stored).items() if value in read}
    given = {value: tensor for value, tensor in graph.constants.items() if value not in uniform}
    return replace(graph, nodes=tuple(nodes), constants=given | kept)


def _numbers_in_kernels(graph: Graph) -> dict[Value, Node]:
    """`full` nodes for those constants of one element that kernels read (and the caller does not see)."""
    scalars = {value: tensor for value, tensor in graph.constants.items() if tensor.numel() == 1}
    found: dict[Value, Node] = {}
    if scalars:
        results = set(graph.results())
        for node in graph.nodes:
            for value in inputs_of(node):
                if value in scalars and value not in found and value not in results and rule_of(node) is not None:
                    number = _uniform_value(value, scalars[value])
                    if number is not None and not shares_memory(node.op):
                        found[value] = _full(value, number, node)
    return found


def _is_known(node: Node, known: Mapping[Value, torch.Tensor | Node], limit: int) -> bool:
    """Whether the results of `node` can be computed now, and are small enough to keep."""
    inputs = inputs_of(node)
    if inputs and not (inputs[0] in known and all(value in known for value in inputs)):
        return False
    return is_reproducible(node) and all(value.type.nbytes <= limit for value in node.outputs)


def _evaluate(node: Node, known: dict[Value, torch.Tensor | Node]) -> list[torch.Tensor] | None:
    """The results, or None when they are not what the node's types say (or the op raises)."""
    env: dict[Value, torch.Tensor] = {}
    for value in inputs_of(node):
        tensor = known[value]
        if isinstance(tensor, Node):
            (tensor,) = evaluate_node(tensor, {})
            known[value] = tensor
        env[value] = tensor
    try:
        with torch.no_grad():
            results = evaluate_node(node, env)
    except Exception:
        return None
    for value, tensor in zip(node.outputs, results, strict=True):
        type_ = value.type
        if (tuple(tensor.shape), tensor.dtype, tensor.device) != (type_.shape, type_.dtype, type_.device):
            return None
    return results


def _uniform_value(value: Value, tensor: torch.Tensor) -> bool | int | float | None:
    """The number that every element of `tensor` is, bit for bit, or None."""
    if tensor.numel() == 0 or tensor.dtype.is_complex or not value.type.is_contiguous or tensor.is_quantized:
        return None
    first = tensor.reshape(-1)[:1]
    flat = tensor.reshape(-1)
    if not bool((flat == first).all()):
        # A NaN differs from itself: a tensor of NaNs counts as one number only when it is a single element.
        return float("nan") if tensor.numel() == 1 and tensor.dtype.is_floating_point else None
    if tensor.dtype.is_floating_point and not bool((flat.signbit() == first.signbit()).all()):
        return None
    number: bool | int | float = first.item()
    return number


def _full(value: Value, number: bool | int | float, node: Node) -> Node:
    type_ = value.type
    return Node(
        aten.full.default,
        (type_.shape, number),
        {"dtype": type_.dtype, "device": type_.device},
        (value,),
        node.source,
    )


def _settle_uniform(
    nodes: list[Node], uniform: Mapping[Value, Node], known: Mapping[Value, torch.Tensor | Node]
) -> tuple[list[Node], dict[Value, torch.Tensor]]:
    """Make constants of the uniform nodes that only library calls read: these need them in memory."""
    fused: set[Value] = set()
    used: set[Value] = set()
    for node in nodes:
        inputs = [value for value in inputs_of(node) if value in uniform]
        if inputs:
            used.update(inputs)
            if rule_of(node) is not None:
                fused.update(inputs)
    stored: dict[Value, torch.Tensor] = {}
    for value in used - fused:
        tensor = known.get(value)
        if tensor is None:
            continue
        stored[value] = evaluate_node(tensor, {})[0] if isinstance(tensor, Node) else tensor
    return [node for node in nodes if len(node.outputs) != 1 or node.outputs[0] not in stored], stored
