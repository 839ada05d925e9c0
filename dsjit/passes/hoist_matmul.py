"""Products hoisted over slices.

Why: a Python loop over windows or tokens multiplies many overlapping slices of one tensor by the same weight: a
library call each, and the same rows again and again. A product acts on each row by itself, so the rows may be
multiplied once, all together, and then sliced. Done when the slices hold at least as many rows as the tensor they are
taken from: then it saves arithmetic, and all but one of the calls. What lies between (slices, views and copies that
keep rows whole) is replayed on the product. A bias that is added to each row afterwards is hoisted likewise.

The result is equal within what a BLAS guarantees: a row of a larger product may be rounded differently. Products of
few rows are the more precise ones (BLAS adds them up in the lanes of a register, in as many short chains), so the one
that takes their place is cut into parts (`short_chains`).

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

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import torch

from dsjit.ir.graph import Arg, Graph, Node, TensorType, Value, contiguous_strides
from dsjit.ops.binding import bind_arguments
from dsjit.ops.builder import Builder
from dsjit.ops.row import View
from dsjit.ops.table import row_of
from dsjit.ops.views import view_strides
from dsjit.passes.dce import eliminate_dead_code
from dsjit.passes.rewrite import inputs_of, ops_where, rebuild, substitute
from dsjit.passes.short_chains import product_in_parts
from dsjit.passes.storage import Storages

__all__ = ["hoist_matmul"]

aten = torch.ops.aten


def hoist_matmul(graph: Graph) -> Graph:
    """Hoist products with a common right-hand side over slices of a common left-hand side, and their biases.

    Linear time.
    """
    chosen = _choose(graph)
    return eliminate_dead_code(_rebuild(graph, chosen)) if chosen else graph


@dataclass(slots=True, eq=False)
class _Family:
    """Nodes that map each row (last dimension) of slices of one tensor to a row, all in the same way.

    base: the tensor; for biases, the family of the products that they are added to.
    operand: position of the slice among the arguments of each member.
    row_count: rows of all slices together. most_rows: of the largest.
    """

    base: Value | _Family
    operand: int
    members: list[Node] = field(default_factory=list)
    row_count: int = 0
    most_rows: int = 0

    def add(self, node: Node) -> None:
        type_ = node.args[self.operand].type
        rows = type_.numel // type_.shape[-1]
        self.members.append(node)
        self.row_count += rows
        self.most_rows = max(self.most_rows, rows)

    def root(self) -> Value:
        return self.base.root() if isinstance(self.base, _Family) else self.base

    def pays(self) -> bool:
        """Whether doing all rows of the base at once is less work than doing those of the slices."""
        type_ = self.root().type
        return len(self.members) > 1 and self.row_count * type_.shape[-1] >= type_.numel

    def parts(self, member: Node) -> int:
        """Into how many parts the products of all rows are cut: those that BLAS makes of few rows."""
        type_ = self.root().type
        if self.most_rows > FEW_ROWS or isinstance(self.base, _Family) or member.kwargs:
            return 1
        if type_.dtype not in (torch.float32, torch.float64) or type_.numel // type_.shape[-1] <= FEW_ROWS:
            return 1
        counts = range(min(MOST_PARTS, type_.shape[-1] // SHORTEST_CHAIN), 1, -1)
        return next((count for count in counts if type_.shape[-1] % count == 0), 1)


FEW_ROWS: Final = 8
MOST_PARTS: Final = 16
SHORTEST_CHAIN: Final = 16
"""Up to 8 rows, MKL adds in the 16 float32 lanes of an AVX-512 register; beyond, in one chain for up to 384 products.
Parts of fewer than 16 products would cost more than they gain."""

_PRODUCTS: Final[Mapping[Any, int]] = {aten.mm.default: 0, aten.addmm.default: 1, aten.linear.default: 0}
"""Ops that treat the rows of one operand alike, and the position of that operand."""


def _choose(graph: Graph) -> dict[Node, _Family]:
    """The nodes to hoist, with their families."""
    movers = ops_where(graph.nodes, _KEEPS_LAST.__contains__)
    products = ops_where(graph.nodes, _PRODUCTS.__contains__)
    if not products:
        return {}
    add = aten.add.Tensor
    roots: dict[Value, Value] = {}
    families: dict[Hashable, _Family] = {}
    family_of: dict[Value, _Family] = {}
    for node in graph.nodes:
        if id(node.op) in movers and _keeps_rows(node):
            source: Value = node.args[0]
            for value in node.outputs:
                roots[value] = roots.get(source, source)
            continue
        if id(node.op) in products:
            found = _product_family(node, roots, families)
        elif node.op is add:
            found = _bias_family(node, roots, families, family_of)
        else:
            continue
        if found is not None:
            found.add(node)
            if not isinstance(found.base, _Family):
                family_of[node.outputs[0]] = found
    paying = [family for family in families.values() if family.pays()]
    kept = {id(family) for family in paying if not isinstance(family.base, _Family)}
    return {
        node: family
        for family in paying
        if not isinstance(family.base, _Family) or id(family.base) in kept
        for node in family.members
    }


def _product_family(node: Node, roots: Mapping[Value, Value], families: dict[Hashable, _Family]) -> _Family | None:
    """mm(x, w), linear(x, w, b?), addmm(b, x, w): rows of x, everything else is shared."""
    position = _PRODUCTS[node.op]
    base = roots.get(node.args[position], node.args[position])
    if len(base.type.shape) < 2 or base.type.numel == 0:
        return None
    if node.op is aten.addmm.default and not _is_row(node.args[0], node.outputs[0]):
        return None
    shared = (*node.args[:position], *node.args[position + 1 :], *node.kwargs.items())
    return families.setdefault((base, id(node.op), shared), _Family(base, position))


def _bias_family(
    node: Node, roots: Mapping[Value, Value], families: dict[Hashable, _Family], family_of: Mapping[Value, _Family]
) -> _Family | None:
    """add(y, b), where y is rows of a product and b one row."""
    if node.kwargs or len(node.args) != 2:
        return None
    y, b = node.args
    product = family_of.get(roots.get(y, y)) if type(y) is Value else None
    if product is None or y.type.shape != node.outputs[0].type.shape or not _is_row(b, y):
        return None
    return families.setdefault((product, b), _Family(product, 0))


def _is_row(bias: Arg, rows: Value) -> bool:
    """Whether `bias` broadcasts along the last dimension of `rows` only, in the dtype that rows have."""
    if type(bias) is not Value or bias.type.dtype is not rows.type.dtype or not bias.type.shape:
        return False
    return bias.type.numel == bias.type.shape[-1] and len(bias.type.shape) <= len(rows.type.shape)


def _rebuild(graph: Graph, chosen: Mapping[Node, _Family]) -> Graph:
    """The Graph with the chosen nodes hoisted.

    Rows of a hoisted result wait (in `waiting`) until a node reads them that does more than to move rows about.
    """
    producers = graph.producers()
    movers = ops_where(graph.nodes, _KEEPS_LAST.__contains__)
    storages = Storages(graph)
    ids = count(graph.next_id())
    mapping: dict[Value, Value] = {}
    waiting: dict[Value, _Replay] = {}
    replays: dict[int, _Replay] = {}
    nodes: list[Node] = []

    def settle(value: Value) -> None:
        """Define `value`, which waits, or map it to an equal Value."""
        replay = waiting.pop(value)
        new = replay.rows_of(value)
        producer = producers[value]
        if new.type == value.type and not storages.escapes(value):
            mapping[value] = new
        elif producer in chosen:
            layout = {"memory_format": torch.contiguous_format}
            nodes.append(Node(aten.clone.default, (new,), layout, (value,), producer.source))
        else:
            read(producer)
            nodes.append(substitute(producer, mapping))

    def read(node: Node) -> None:
        for value in inputs_of(node):
            if value in waiting:
                settle(value)

    for node in graph.nodes:
        family = chosen.get(node)
        if family is not None:
            replay = replays.get(id(family))
            if replay is None:
                product = replays[id(family.base)].product if isinstance(family.base, _Family) else None
                base = product or mapping.get(family.root(), family.root())
                shared = [arg for n, arg in enumerate(node.args) if n != family.operand]
                read(node.with_args(tuple(shared), node.kwargs))
                replay = replays[id(family)] = _Replay(producers, chosen, ids, nodes)
                replay.start(substitute(node, mapping), family, base)
            waiting[node.outputs[0]] = replay
            if storages.escapes(node.outputs[0]):
                settle(node.outputs[0])
        elif id(node.op) in movers and node.args[0] in waiting and _keeps_rows(node):
            for value in node.outputs:
                waiting[value] = waiting[node.args[0]]
        else:
            read(node)
            nodes.append(substitute(node, mapping))
    for value in dict.fromkeys(graph.results()):
        if value in waiting:
            settle(value)
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


class _Replay:
    """Repeats on a hoisted result what was done to the tensor whose rows it was computed from.

    product: the result for all rows, in the shape of that tensor but for the last dimension.
    """

    def __init__(
        self,
        producers: Mapping[Value, Node],
        families: Mapping[Node, _Family],
        ids: Iterator[int],
        nodes: list[Node],
    ) -> None:
        self.product: Value | None = None
        self._producers = producers
        self._families = families
        self._ids = ids
        self._nodes = nodes
        self._values: dict[Value, Value] = {}
        self._reshaped: dict[Value, Value] = {}

    def start(self, member: Node, family: _Family, base: Value) -> None:
        """Do what `member` does to its rows to all rows of `base`."""
        shape = base.type.shape
        width = member.outputs[0].type.shape[-1]
        flat = member.op in (aten.mm.default, aten.addmm.default) and len(shape) > 2
        operand = self._view(base, (base.type.numel // shape[-1], shape[-1]), member) if flat else base
        parts = family.parts(member)
        if parts > 1:
            self.product = self._in_parts(member, operand, parts, (*shape[:-1], width))
            self._values[family.root()] = self.product
            return
        result = _typed(member.outputs[0], (*operand.type.shape[:-1], width))
        args = (*member.args[: family.operand], operand, *member.args[family.operand + 1 :])
        product = self._emit(member.op, (result,), args, member, **member.kwargs).output
        self.product = self._view(product, (*shape[:-1], width), member) if flat else product
        self._values[family.root()] = self.product

    def _in_parts(self, member: Node, operand: Value, parts: int, shape: tuple[int, ...]) -> Value:
        depth = operand.type.shape[-1]
        rows = self._view(operand, (operand.type.numel // depth, depth), member)
        b = Builder(next(self._ids), member.source)
        bias: Arg = None
        if member.op is aten.linear.default:
            matrix = b.call(aten.t.default, member.args[1])
            bias = member.args[2] if len(member.args) > 2 else None
        else:
            *before, _, matrix = member.args
            bias = before[0] if before else None
        product = product_in_parts(b, rows, matrix, parts)
        if bias is not None:
            product = b.call(aten.add.Tensor, product, bias)
        for _ in b.nodes[1:]:  # one id each; the first one is taken
            next(self._ids)
        self._nodes += b.nodes
        return self._view(product, shape, member)

    def rows_of(self, value: Value) -> Value:
        """What `value`, made of rows of the base by members and row-keeping ops, is on the product."""
        chain: list[Node] = []
        reached = value
        while reached not in self._values:
            node = self._producers[reached]
            chain.append(node)
            reached = self._operand(node)
        for node in reversed(chain):
            source = self._values[self._operand(node)]
            repeated = (source,) if node in self._families else self._repeat(node, source)
            self._values.update(zip(node.outputs, repeated, strict=True))
        return self._values[value]

    def _operand(self, node: Node) -> Value:
        family = self._families.get(node)
        operand: Value = node.args[0 if family is None else family.operand]
        return operand

    def _repeat(self, node: Node, source: Value) -> tuple[Value, ...]:
        """Append a row-keeping `node` with `source` in place of its operand."""
        shape = (*node.outputs[0].type.shape[:-1], source.type.shape[-1])
        if node.op is aten.clone.default:
            return (self._dense(source, node),)
        if node.op is aten.view.default or node.op is aten._unsafe_view.default:
            return (self._view(source, shape, node),)
        rest = (shape,) if node.op is aten.expand.default else node.args[1:]
        row = row_of(node.op)
        assert row is not None
        assert isinstance(row.rule, View)
        types = row.rule.types(bind_arguments(node.op, (source, *rest), node.kwargs))
        return self._emit(node.op, types, (source, *rest), node, **node.kwargs).outputs

    def _view(self, source: Value, shape: tuple[int, ...], like: Node) -> Value:
        """`source` in `shape`: through one view of what it is a view of, and a copy only if there is no other way."""
        source = self._reshaped.get(source, source)
        if source.type.shape == shape:
            return source
        strides = view_strides(source.type, shape)
        if strides is None:
            source = self._dense(source, like)
        viewed = self._emit(aten.view.default, (_typed(source, shape, strides),), (source, shape), like).output
        self._reshaped[viewed] = source
        return viewed

    def _dense(self, source: Value, like: Node) -> Value:
        type_ = _typed(source, source.type.shape)
        if source.type == type_:
            return source
        return self._emit(aten.clone.default, (type_,), (source,), like, memory_format=torch.contiguous_format).output

    def _emit(self, op: Any, types: tuple[TensorType, ...], args: tuple[Arg, ...], like: Node, **kwargs: Arg) -> Node:
        outputs = tuple([Value(next(self._ids), type_) for type_ in types])
        node = Node(op, args, kwargs, outputs, like.source)
        self._nodes.append(node)
        return node


def _typed(like: Value, shape: tuple[int, ...], strides: tuple[int, ...] | None = None) -> TensorType:
    """The type of `like` with another shape, row-major unless `strides` are given."""
    return TensorType(shape, like.type.dtype, strides or contiguous_strides(shape), like.type.device)
