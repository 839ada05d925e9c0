"""Decomposition: ops that are written with other ops, by the rows of the op table.

Why: softmax, layer norm, means and losses become pointwise ops and reductions, which fuse; an op that a kernel
cannot take in one piece is taken in several. What a rewrite produces is rewritten in turn. Each new node keeps the
line of the node that it comes from. The last nodes keep the original Values, strides included, so that what
follows stays as it was.

Before:
    def graph(x0: f32[2, 3], x1: f32[3, 4], x2: f32[4]):
        t3 = aten.addmm.default(x2, x0, x1)
        return t3
After:
    def graph(x0: f32[2, 3], x1: f32[3, 4], x2: f32[4]):
        t3 = aten.mm.default(x0, x1)
        t4 = aten.add.Tensor(t3, x2)
        return t4
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from dsjit.errors import VerificationError
from dsjit.ir.graph import Graph, Node, Value
from dsjit.ops.binding import bind
from dsjit.ops.builder import Builder
from dsjit.ops.properties import shares_memory
from dsjit.ops.row import Decomposition, Pointwise, Reduction
from dsjit.ops.table import row_of, rule_of
from dsjit.passes.rewrite import inputs_of, ops_where, rebuild, substitute
from dsjit.passes.storage import Storages

__all__ = ["decompose"]

aten = torch.ops.aten


def decompose(graph: Graph) -> Graph:
    """Rewrite every node that a Decomposition row covers, until none is left.

    A node stays as a library call when its row's `when` or its rewrite declines. Linear in the nodes produced.
    Raises VerificationError when a rewrite gives a Value of another shape or dtype.
    """
    if not ops_where(graph.nodes, _has_decomposition):
        return graph
    used = set(graph.results())
    for node in graph.nodes:
        used.update(inputs_of(node))
    storages = Storages(graph)
    mapping: dict[Value, Value] = {}
    next_id = graph.next_id()
    nodes: list[Node] = []
    pending = list(reversed(graph.nodes))
    while pending:
        node = substitute(pending.pop(), mapping)
        rule = rule_of(node) if _has_decomposition(node.op) else None
        if not isinstance(rule, Decomposition):
            nodes.append(node)
            continue
        builder = Builder(next_id, node.source)
        results = rule.rewrite(builder, tuple([value.type for value in node.outputs]), **bind(node))
        if results is None or any(new is None and old in used for old, new in zip(node.outputs, results, strict=True)):
            nodes.append(node)
            continue
        produced = _keep_original_values(node, results, builder.nodes, storages, mapping)
        next_id = builder.next_id
        for new in produced:
            storages.define(new)
            used.update(inputs_of(new))
        pending.extend(reversed(produced))
    return rebuild(graph, nodes, mapping)


@cache
def _has_decomposition(op: Callable[..., Any]) -> bool:
    row = row_of(op)
    return row is not None and isinstance(row.rule, Decomposition)


def _keep_original_values(
    node: Node,
    results: tuple[Value | None, ...],
    produced: list[Node],
    storages: Storages,
    mapping: dict[Value, Value],
) -> list[Node]:
    """`produced`, with the outputs of `node` in place of `results` where that is sound, else with copies appended."""
    producers = {value: new for new in produced for value in new.outputs}
    renamed: dict[Value, Value] = {}
    copies: list[Node] = []
    for old, new in zip(node.outputs, results, strict=True):
        if new is None:
            continue
        if (new.type.shape, new.type.dtype) != (old.type.shape, old.type.dtype):
            raise VerificationError(f"{node.source}: {node.op} gives {old.type}, its rewrite {new.type}")
        producer = producers.get(new)
        if producer is not None and new not in renamed and _may_take_over(node, old, new, producer, storages):
            renamed[new] = old
        elif producer is None and new.type == old.type and storages.may_replace(old, new):
            storages.replace(old, new)
            mapping[old] = new
        else:
            copies.append(Node(aten.clone.default, (renamed.get(new, new),), {}, (old,), node.source))
    if renamed:
        produced = [_renamed(new, renamed) for new in produced]
    # A copy reads the Value under the name that it has in the end.
    return produced + [substitute(copy, renamed) for copy in copies]


def _renamed(node: Node, names: dict[Value, Value]) -> Node:
    outputs = tuple([names.get(value, value) for value in node.outputs])
    read = substitute(node, names)
    return Node(read.op, read.args, read.kwargs, outputs, read.source, read.mutates, read.effect)


def _may_take_over(node: Node, old: Value, new: Value, producer: Node, storages: Storages) -> bool:
    """Whether `producer` may define `old` in place of `new`."""
    if shares_memory(producer.op) and not shares_memory(node.op) and storages.escapes(old):
        return False
    if new.type == old.type:
        return True
    row = row_of(producer.op)
    return row is not None and isinstance(row.rule, (Pointwise, Reduction))
