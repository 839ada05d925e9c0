"""Two-stage reductions.

Why: a reduction is parallel over its outer points. With few points and a long extent (the sum of a whole tensor, a
norm, the mean of each of 8 columns) all threads but a few would idle. The reduced extent is cut into parts: the
first stage reduces each part, the second the few partial results. Partial sums also keep the rounding error small.
Only for combinations that may be regrouped: sum, prod, max, min, any, all.

Before:
    def graph(x0: f32[65536]):
        t1 = aten.sum.dim_IntList(x0, [0])
        return t1
After:
    def graph(x0: f32[65536]):
        t1 = aten.view.default(x0, [64, 1024])
        t2 = aten.sum.dim_IntList(t1, [1], dtype=torch.float32)
        t3 = aten.sum.dim_IntList(t2, [0], dtype=torch.float32)
        return t3
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, Final

import torch

from dsjit.ir.graph import Graph, Node, Value
from dsjit.ir.kernel import ReduceKind
from dsjit.ops.binding import bind
from dsjit.ops.builder import Builder
from dsjit.ops.row import Reduction
from dsjit.ops.table import row_of, rule_of
from dsjit.passes.rewrite import ops_where

__all__ = ["FEW_POINTS", "GPU_POINTS", "LONG_EXTENT", "MANY_POINTS", "split_reductions"]

aten = torch.ops.aten

FEW_POINTS: Final[int] = 16
"""Outer points below which threads idle so much that it is worth a second stage. Not more: a reduction with more
points may be part of a fused row (softmax), which reads memory once and would be torn apart."""

MANY_POINTS: Final[int] = 64
"""Outer points to give the first stage: enough to share out evenly among the threads of a machine."""

GPU_POINTS: Final[int] = 256
"""The same for a GPU: two programs for each multiprocessor of the larger ones."""

LONG_EXTENT: Final[int] = 32768
"""Elements per point from which on a second stage costs less than idle threads (some 10 us of work)."""

_Stage = Callable[[Builder, Value, tuple[int, ...], torch.dtype], Value]

_STAGES: Final[Mapping[ReduceKind, _Stage]] = {
    "sum": lambda b, x, dims, dtype: b.call(aten.sum.dim_IntList, x, dims, dtype=dtype),
    "prod": lambda b, x, dims, dtype: b.call(aten.prod.dim_int, x, dims[0], dtype=dtype),
    "max": lambda b, x, dims, dtype: b.call(aten.amax.default, x, dims),
    "min": lambda b, x, dims, dtype: b.call(aten.amin.default, x, dims),
    "any": lambda b, x, dims, dtype: b.call(aten.any.dims, x, dims),
    "all": lambda b, x, dims, dtype: b.call(aten.all.dims, x, dims),
}
"""How to reduce `x` along `dims`, combining in `dtype`; the reduced dimensions vanish."""

_ONE_DIMENSION: Final[frozenset[ReduceKind]] = frozenset({"prod"})
"""Kinds for which ATen has no overload with several dimensions."""


def split_reductions(
    graph: Graph, *, few: int = FEW_POINTS, many: int = MANY_POINTS, extent: int = LONG_EXTENT
) -> Graph:
    """Split reductions with fewer than `few` outer points and at least `extent` elements for each.

    The first stage has at least `many` points. Linear time.
    """
    nodes: list[Node] = []
    next_id: int | None = None
    reductions = ops_where(graph.nodes, _is_reduction)
    for node in graph.nodes:
        rule = rule_of(node) if id(node.op) in reductions else None
        if not isinstance(rule, Reduction):
            nodes.append(node)
            continue
        if next_id is None:
            next_id = graph.next_id()
        builder = Builder(next_id, node.source)
        if _split(node, rule, builder, few, many, extent):
            next_id = builder.next_id
            nodes.extend(builder.nodes)
        else:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes)) if len(nodes) != len(graph.nodes) else graph


def _is_reduction(op: Callable[..., Any]) -> bool:
    row = row_of(op)
    return row is not None and isinstance(row.rule, Reduction)


def _split(node: Node, rule: Reduction, b: Builder, few: int, many: int, extent: int) -> bool:
    """Append both stages to `b`, the last of them defining the output of `node`; False when it is better left whole."""
    stage = _STAGES.get(rule.kind)
    if stage is None or len(node.outputs) != 1:
        return False
    bound = bind(node)
    x: Value = bound["self"]
    shape = x.type.shape
    dims = rule.dims(bound, len(shape))
    reduced = prod(shape[dim] for dim in dims)
    if reduced < extent or x.type.numel == 0:
        return False
    outer = x.type.numel // reduced
    if outer >= few:
        return False
    parts = _parts(shape, dims, -(-many // outer))
    if parts is None:
        return False
    split_shape: list[int] = []
    first: list[int] = []
    kept: list[int] = []
    for dim, size in enumerate(shape):
        count = parts.get(dim, 1)
        if dim in dims and count > 1:
            kept.append(len(split_shape) - len(first))
            split_shape.append(count)
            size //= count
            if size == 1:
                continue
        if dim in dims:
            first.append(len(split_shape))
        split_shape.append(size)
    if rule.kind in _ONE_DIMENSION and (len(first) > 1 or len(kept) > 1):
        return False
    target = node.outputs[0]
    compute = rule.compute(x.type.dtype, target.type.dtype)
    value = x if tuple(split_shape) == shape else b.call(aten.view.default, x, tuple(split_shape))
    value = stage(b, value, tuple(first), compute)
    value = stage(b, value, tuple(kept), compute)
    if value.type.dtype is not target.type.dtype:
        value = b.call(aten._to_copy.default, value, dtype=target.type.dtype)
    if value.type.shape != target.type.shape:
        value = b.call(aten.view.default, value, target.type.shape)
    b.nodes[-1] = replace(b.nodes[-1], outputs=(target,))
    return True


def _parts(shape: Sequence[int], dims: Sequence[int], wanted: int) -> dict[int, int] | None:
    """Into how many parts to cut each reduced dimension, outermost first, for at least `wanted` parts in all.

    A dimension is cut at a divisor of its size, or in all its elements when it is short. None when the sizes do not
    allow it, or nothing would be left for the first stage.
    """
    parts: dict[int, int] = {}
    for dim in dims:
        if wanted <= 1:
            break
        size = shape[dim]
        limit = 16 * wanted
        count = size if size <= 2 * wanted else next((n for n in range(wanted, limit) if size % n == 0), 0)
        if not count:
            return None
        parts[dim] = count
        wanted = -(-wanted // count)
    left = prod(shape[dim] // parts.get(dim, 1) for dim in dims)
    return parts if wanted <= 1 and left > 1 else None
