"""Copies that only change the layout of a matrix, dropped.

Why: eager copies a slice or a transposed view to make it dense before it multiplies it. A BLAS reads matrices with any
distance between rows and between batches: only one of the two inner strides must be 1. A copy goes when everyone who
reads it (through views that the original's strides allow too) is a product that can read the original.

Before:
    def graph(x0: f32[2, 8, 4], x1: f32[2, 4, 5]):
        t2 = aten.slice.Tensor(x0, 1, 0, 6)
        t3 = aten.clone.default(t2, memory_format=torch.contiguous_format)
        t4 = aten.bmm.default(t3, x1)
        return t4
After:
    def graph(x0: f32[2, 8, 4], x1: f32[2, 4, 5]):
        t2 = aten.slice.Tensor(x0, 1, 0, 6)
        t3 = aten.bmm.default(t2, x1)
        return t3
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch

from dsjit.ir.graph import Graph, Node, TensorType, Value
from dsjit.ops.binding import bind_arguments
from dsjit.ops.row import View
from dsjit.ops.table import row_of
from dsjit.passes.rewrite import rebuild, substitute
from dsjit.passes.storage import Storages

__all__ = ["drop_copies"]

aten = torch.ops.aten

_PRODUCTS: Final[dict[Any, tuple[int, ...]]] = {
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
    aten.bmm.default: (0, 1),
    aten.mm.default: (0, 1),
}
"""The positions of matrix operands."""


def drop_copies(graph: Graph) -> Graph:
    """Let products read the original of a copy where they can. Linear time but for long chains of views."""
    clone = aten.clone.default
    candidates = [node for node in graph.nodes if node.op is clone]
    if not candidates:
        return graph
    users = graph.users()
    results = set(graph.results())
    storages = Storages(graph)
    retyped: dict[Value, TensorType] = {}
    dropped: dict[Value, Value] = {}
    for node in candidates:
        copy, original = node.outputs[0], node.args[0]
        types: dict[Value, TensorType] = {copy: retyped.get(original, original.type)}
        if not storages.escapes(copy) and _readable(copy, users, results, types):
            dropped[copy] = original
            del types[copy]
            retyped.update(types)
    if not dropped:
        return graph
    mapping: dict[Value, Value] = {value: Value(value.id, type_) for value, type_ in retyped.items()}
    for copy, original in dropped.items():
        mapping[copy] = mapping.get(original, original)
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.outputs and node.outputs[0] in dropped:
            continue
        node = substitute(node, mapping)
        if any(value in retyped for value in node.outputs):
            node = replace(node, outputs=tuple([mapping.get(value, value) for value in node.outputs]))
        nodes.append(node)
    return rebuild(graph, nodes, mapping)


def _readable(
    value: Value, users: Mapping[Value, list[Node]], results: set[Value], types: dict[Value, TensorType]
) -> bool:
    """Whether every user of `value` is a product that takes it with the type in `types`, or a view that passes it on.

    Adds the types that such views get.
    """
    if value in results:
        return False
    for user in users.get(value, ()):
        positions = _PRODUCTS.get(user.op)
        if positions is not None:
            if not all(arg is not value or n in positions for n, arg in enumerate(user.args)):
                return False
            if not _is_blas_matrix(types[value]):
                return False
            continue
        row = row_of(user.op)
        if row is None or not isinstance(row.rule, View) or user.args[0] is not value:
            return False
        probe = Value(value.id, types[value])
        try:
            viewed = row.rule.types(bind_arguments(user.op, (probe, *user.args[1:]), user.kwargs))
        except ValueError:
            return False
        for output, type_ in zip(user.outputs, viewed, strict=True):
            types[output] = type_
            if not _readable(output, users, results, types):
                return False
    return True


def _is_blas_matrix(type_: TensorType) -> bool:
    """Whether the last two dimensions are a matrix that BLAS takes: one stride is 1, the other spans a whole line."""
    rows, columns = type_.shape[-2:]
    row_stride, column_stride = type_.strides[-2:]
    by_rows = column_stride == 1 and row_stride >= max(columns, 1)
    by_columns = row_stride == 1 and column_stride >= max(rows, 1)
    return by_rows or by_columns
