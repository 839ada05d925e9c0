"""Products hoisted over slices.

Why: a Python loop over windows or tokens multiplies many overlapping slices of one tensor by the same weight: a
library call each, and the same rows again and again. A product acts on each row by itself, so the rows may be
multiplied once, all together, and then sliced. Done when the slices hold at least as many rows as the tensor they are
taken from: then it saves arithmetic, and all but one of the calls. What lies between (slices, views and copies that
keep rows whole) is replayed on the product. A bias that is added to each row afterwards is hoisted likewise.

The result is equal within what a BLAS guarantees: a row of a larger product may be rounded differently.

Before:
    def graph(x0: f32[8, 4], x1: f32[4, 5]):
        t2 = aten.slice.Tensor(x0, 0, 0, 6)
        t3 = aten.mm.default(t2, x1)
        t4 = aten.slice.Tensor(x0, 0, 2, 8)
        t5 = aten.mm.default(t4, x1)
        t6 = aten.add.Tensor(t3, t5)
        return t6
After:
    def graph(x0: f32[8, 4], x1: f32[4, 5]):
        t2 = aten.mm.default(x0, x1)
        t3 = aten.slice.Tensor(t2, 0, 0, 6)
        t4 = aten.slice.Tensor(t2, 0, 2, 8)
        t5 = aten.add.Tensor(t3, t4)
        return t5
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import torch

from dsjit.ir.graph import Arg, Graph, Node, TensorType, Value, contiguous_strides
from dsjit.ops.binding import bind_arguments
from dsjit.ops.row import View
from dsjit.ops.table import row_of
from dsjit.ops.views import view_strides
from dsjit.passes.dce import eliminate_dead_code
from dsjit.passes.rewrite import ops_where, rebuild, substitute
from dsjit.passes.storage import Storages

__all__ = ["hoist_matmul"]

aten = torch.ops.aten


def hoist_matmul(graph: Graph) -> Graph:
    """Hoist products with a common right-hand side over slices of a common left-hand side, then their biases."""
    hoisted = _hoist(graph, _PRODUCTS)
    return graph if hoisted is graph else eliminate_dead_code(_hoist(hoisted, _BIASES))


@dataclass(frozen=True, slots=True)
class _RowOp:
    """A node that maps each row (last dimension) of one operand to a row, all in the same way.

    rows: position of the operand.
    shared: what else the result depends on; nodes with equal `shared` treat rows alike.
    """

    rows: int
    shared: Hashable


@dataclass(slots=True)
class _Family:
    """The nodes that treat the rows of `base` in one way."""

    base: Value
    members: list[tuple[Node, _RowOp]] = field(default_factory=list)
    row_count: int = 0


def _product(node: Node, roots: Mapping[Value, Value], producers: Mapping[Value, Node]) -> _RowOp | None:
    """mm(x, w), linear(x, w, b?), addmm(b, x, w): rows of x; w and b are shared."""
    position = 1 if node.op is aten.addmm.default else 0
    others = (*node.args[:position], *node.args[position + 1 :])
    if node.op is aten.addmm.default and not _is_row(node.args[0], node.outputs[0]):
        return None
    return _RowOp(position, (id(node.op), others, tuple(node.kwargs.items())))


def _bias(node: Node, roots: Mapping[Value, Value], producers: Mapping[Value, Node]) -> _RowOp | None:
    """add(y, b), where y is rows of a product and b one row."""
    if node.kwargs or len(node.args) != 2:
        return None
    y, b = node.args
    if type(y) is not Value or y.type.shape != node.outputs[0].type.shape or not _is_row(b, y):
        return None
    producer = producers.get(roots.get(y, y))
    return _RowOp(0, (id(node.op), b)) if producer is not None and producer.op in _PRODUCTS else None


def _is_row(bias: Arg, rows: Value) -> bool:
    """Whether `bias` broadcasts along the last dimension of `rows` only, in the dtype that rows have."""
    if type(bias) is not Value or bias.type.dtype is not rows.type.dtype or not bias.type.shape:
        return False
    return bias.type.numel == bias.type.shape[-1] and len(bias.type.shape) <= len(rows.type.shape)


_Matcher = Callable[[Node, Mapping[Value, Value], Mapping[Value, Node]], _RowOp | None]

_PRODUCTS: Final[Mapping[Any, _Matcher]] = {
    aten.mm.default: _product,
    aten.addmm.default: _product,
    aten.linear.default: _product,
}
_BIASES: Final[Mapping[Any, _Matcher]] = {aten.add.Tensor: _bias}


def _hoist(graph: Graph, matchers: Mapping[Any, _Matcher]) -> Graph:
    producers: dict[Value, Node] = {}
    roots: dict[Value, Value] = {}
    families: dict[Hashable, _Family] = {}
    movers = ops_where(graph.nodes, _KEEPS_LAST.__contains__)
    matched = ops_where(graph.nodes, matchers.__contains__)
    if not matched:
        return graph
    for node in graph.nodes:
        for value in node.outputs:
            producers[value] = node
        if id(node.op) in movers and _keeps_rows(node):
            source: Value = node.args[0]
            for value in node.outputs:
                roots[value] = roots.get(source, source)
            continue
        found = matchers[node.op](node, roots, producers) if id(node.op) in matched else None
        if found is None:
            continue
        operand: Value = node.args[found.rows]
        base = roots.get(operand, operand)
        if len(base.type.shape) < 2 or base.type.numel == 0:
            continue
        family = families.setdefault((base, found.shared), _Family(base))
        family.members.append((node, found))
        family.row_count += operand.type.numel // operand.type.shape[-1]
    chosen = {
        node: (family, found)
        for family in families.values()
        if len(family.members) > 1 and family.row_count * family.base.type.shape[-1] >= family.base.type.numel
        for node, found in family.members
    }
    if not chosen:
        return graph
    replays: dict[int, _Replay] = {}
    storages = Storages(graph)
    mapping: dict[Value, Value] = {}
    nodes: list[Node] = []
    ids = count(graph.next_id())
    for original in graph.nodes:
        if original not in chosen:
            nodes.append(substitute(original, mapping))
            continue
        family, found = chosen[original]
        replay = replays.get(id(family))
        if replay is None:
            replay = replays[id(family)] = _Replay(producers, ids)
            product = replay.multiply(substitute(original, mapping), found, mapping.get(family.base, family.base))
            replay.values[family.base] = product
        old = original.outputs[0]
        new = replay.rows_of(original.args[found.rows])
        for added in replay.nodes:
            storages.define(added)
        if new.type == old.type and storages.may_replace(old, new):
            storages.replace(old, new)
            mapping[old] = new
        else:
            keywords = {"memory_format": torch.contiguous_format}
            replay.nodes.append(Node(aten.clone.default, (new,), keywords, (old,), original.source))
        nodes += replay.nodes
        replay.nodes.clear()
    return rebuild(graph, nodes, mapping)


_KEEPS_LAST: Final[frozenset[Any]] = frozenset(
    {
        aten.alias.default,
        aten.clone.default,
        aten.detach.default,
        aten.expand.default,
        aten.permute.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.t.default,
        aten.transpose.int,
        aten.unbind.int,
        aten.unsqueeze.default,
        aten.view.default,
        aten._unsafe_view.default,
    }
)
"""Ops that may move whole rows about: those for which `_keeps_rows` decides by the arguments."""


def _keeps_rows(node: Node) -> bool:
    """Whether each row (last dimension) of each result is a row of the first argument."""
    op = node.op
    if type(node.args[0]) is not Value:
        return False
    shape, result = node.args[0].type.shape, node.outputs[0].type.shape
    rank = len(shape)
    # With rows of one element, the last dimension cannot be told from any other.
    if rank < 2 or not result or result[-1] != shape[-1] or shape[-1] <= 1:
        return False
    last = rank - 1
    if op is aten.slice.Tensor or op is aten.split.Tensor or op is aten.split_with_sizes.default:
        position = 1 if op is aten.slice.Tensor else 2
        dim = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
        return bool(dim % rank != last)
    if op is aten.select.int:
        return bool(node.args[1] % rank != last)
    if op is aten.unbind.int:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        return bool(dim % rank != last)
    if op is aten.unsqueeze.default:
        return bool(node.args[1] % (rank + 1) != rank)
    if op is aten.permute.default:
        return bool(node.args[1][-1] % rank == last)
    if op is aten.transpose.int:
        return last not in (node.args[1] % rank, node.args[2] % rank)
    return op is not aten.t.default


@dataclass(slots=True)
class _Replay:
    """Repeats on the product what was done to its left-hand side.

    values: what stands for a Value of the old chain in the new one. nodes: what was appended and not yet taken.
    """

    producers: Mapping[Value, Node]
    ids: Iterator[int]
    values: dict[Value, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def emit(self, op: Any, types: tuple[TensorType, ...], args: tuple[Arg, ...], like: Node, **kwargs: Arg) -> Node:
        outputs = tuple([Value(next(self.ids), type_) for type_ in types])
        node = Node(op, args, kwargs, outputs, like.source)
        self.nodes.append(node)
        return node

    def multiply(self, member: Node, found: _RowOp, base: Value) -> Value:
        """Apply the row op of `member` to all rows of `base`: the result has the shape of `base` but for the last."""
        shape = base.type.shape
        width = member.outputs[0].type.shape[-1]
        flat = member.op in (aten.mm.default, aten.addmm.default) and len(shape) > 2
        operand = base
        if flat:
            rows = (base.type.numel // shape[-1], shape[-1])
            strides = view_strides(base.type, rows)
            if strides is None:
                operand = self._dense(base, member).output
                strides = contiguous_strides(rows)
            seen = _typed(base, rows, strides)
            operand = self.emit(aten.view.default, (seen,), (operand, rows), member).output
        result_shape = (*operand.type.shape[:-1], width)
        result = _typed(member.outputs[0], result_shape)
        args = (*member.args[: found.rows], operand, *member.args[found.rows + 1 :])
        product = self.emit(member.op, (result,), args, member, **member.kwargs).output
        if flat:
            target = (*shape[:-1], width)
            viewed = _typed(product, target)
            product = self.emit(aten.view.default, (viewed,), (product, target), member).output
        return product

    def rows_of(self, value: Value) -> Value:
        """What `value`, reached from the base by row-keeping ops, becomes on the product."""
        chain: list[Node] = []
        reached = value
        while reached not in self.values:
            chain.append(self.producers[reached])
            reached = chain[-1].args[0]
        for node in reversed(chain):
            self.values.update(zip(node.outputs, self._repeat(node).outputs, strict=True))
        return self.values[value]

    def _repeat(self, node: Node) -> Node:
        """Append `node` with the product's rows in place of the left-hand side's."""
        source = self.values[node.args[0]]
        shape = (*node.outputs[0].type.shape[:-1], source.type.shape[-1])
        if node.op is aten.clone.default:
            return self._dense(source, node)
        if node.op is aten.view.default or node.op is aten._unsafe_view.default:
            strides = view_strides(source.type, shape)
            if strides is None:
                source = self._dense(source, node).output
                strides = contiguous_strides(shape)
            return self.emit(aten.view.default, (_typed(source, shape, strides),), (source, shape), node)
        rest = (shape,) if node.op is aten.expand.default else node.args[1:]
        row = row_of(node.op)
        assert row is not None
        assert isinstance(row.rule, View)
        types = row.rule.types(bind_arguments(node.op, (source, *rest), node.kwargs))
        return self.emit(node.op, types, (source, *rest), node, **node.kwargs)

    def _dense(self, source: Value, like: Node) -> Node:
        type_ = _typed(source, source.type.shape)
        return self.emit(aten.clone.default, (type_,), (source,), like, memory_format=torch.contiguous_format)


def _typed(like: Value, shape: tuple[int, ...], strides: tuple[int, ...] | None = None) -> TensorType:
    """The type of `like` with another shape, row-major unless `strides` are given."""
    return TensorType(shape, like.type.dtype, strides or contiguous_strides(shape), like.type.device)
