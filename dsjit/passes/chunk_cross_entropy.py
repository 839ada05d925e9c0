"""A linear layer under a cross entropy, of so many rows that its logits outweigh its gradients, is computed in chunks.

Why: the logits of a language model are its largest activation by far, and eager holds them several times: as such,
as logarithms of probabilities, and as two gradients. `linear_cross_entropy` takes a few rows at a time through forward
and backward. What it keeps are the gradients of its operands, whose bytes do not grow with rows times classes.

Before:
    def graph(x0: f32[1024, 16], x1: f32[8192, 16], x2: i64[1024], x3: f32[()]):
        t4 = aten.t.default(x1)
        t5 = aten.mm.default(x0, t4)
        t6 = aten._log_softmax.default(t5, 1, False)
        t7, t8 = aten.nll_loss_forward.default(t6, x2, None, 1, -100)
        t9 = aten.nll_loss_backward.default(x3, t6, x2, None, 1, -100, t8)
        t10 = aten._log_softmax_backward_data.default(t9, t6, 1, torch.float32)
        t11 = aten.mm.default(t10, x1)
        return t7, t11
After:
    def graph(x0: f32[1024, 16], x1: f32[8192, 16], x2: i64[1024], x3: f32[()]):
        t4 = aten.t.default(x1)
        t5, t6, t7 = linear_cross_entropy(x0, t4, None, x2, 1, -100, [True, False, False])
        t8 = aten.mul.Tensor(t7, x3)
        return t5, t8
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from dsjit.ir.graph import Graph, Node, TensorType, Value
from dsjit.ops.cross_entropy import MEAN, SUM, linear_cross_entropy
from dsjit.passes.dce import eliminate_dead_code

__all__ = ["chunk_cross_entropy"]

aten = torch.ops.aten

SMALLEST_LOGITS: Final = 16 * 2**20
"""Bytes; smaller ones fit in a cache, or nearly."""

GAIN: Final = 2
"""How many times the bytes of the gradients the logits must have."""

_RESHAPES: Final = frozenset({aten.view.default, aten._unsafe_view.default, aten.detach.default, aten.alias.default})


def chunk_cross_entropy(graph: Graph) -> Graph:
    """Each such layer whose logits nothing else reads. Linear time, but for the layers found."""
    losses = [node for node in graph.nodes if node.op is aten.nll_loss_forward.default]
    if not losses:
        return graph
    finder = _Finder(graph.producers(), graph.users(), frozenset(graph.results()))
    replaced: dict[Node, tuple[Node, ...]] = {}
    number = graph.next_id()
    for loss in losses:
        layer = finder.layer_of(loss)
        if layer is not None and _is_worth_it(layer):
            replaced.update(_in_chunks(layer, number))
            number += 5
    if not replaced:
        return graph
    nodes = [new for node in graph.nodes for new in replaced.get(node, (node,))]
    return eliminate_dead_code(replace(graph, nodes=tuple(nodes)))


@dataclass(slots=True)
class _Layer:
    """Of the logits hidden @ matrix + bias. tangent: the gradient of the loss. The lists are of nodes that compute
    gradients from that of the logits; `d_weight` those that give the matrix's as (classes, features)."""

    loss: Node
    hidden: Value
    matrix: Value
    bias: Value | None
    tangent: Value | None = None
    d_hidden: list[Node] = field(default_factory=list)
    d_weight: list[Node] = field(default_factory=list)
    d_matrix: list[Node] = field(default_factory=list)
    d_bias: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Finder:
    producers: Mapping[Value, Node]
    users: Mapping[Value, Sequence[Node]]
    results: frozenset[Value]

    def layer_of(self, loss: Node) -> _Layer | None:
        logarithms, _, weight, reduction, _ = loss.args
        if weight is not None or reduction not in (MEAN, SUM) or len(logarithms.type.shape) != 2:
            return None
        softmax = self._maker(logarithms)
        if softmax is None or softmax.op is not aten._log_softmax.default or softmax.args[2]:
            return None
        logits = softmax.args[0]
        if softmax.args[1] not in (-1, len(logits.type.shape) - 1) or logits.type.dtype is not logarithms.type.dtype:
            return None
        product = self._maker(logits)
        layer = None if product is None else _operands(loss, product)
        if layer is None or product is None or product.output.type.shape != logarithms.type.shape:
            return None
        backwards = [node for _, node in self._readers(softmax.output) if node is not loss]
        if [node for _, node in self._readers(product.output)] != [softmax] or len(backwards) not in (0, 2):
            return None
        return layer if not backwards or self._read_backward(layer, softmax.output, backwards) else None

    def _read_backward(self, layer: _Layer, logarithms: Value, nodes: Sequence[Node]) -> bool:
        """Fills in what computes gradients; False when anything reads the gradient of the logits that is not known."""
        by_op = {node.op: node for node in nodes}
        first, second = by_op.get(aten.nll_loss_backward.default), by_op.get(aten._log_softmax_backward_data.default)
        if first is None or second is None or first.args[2] is not layer.loss.args[1]:
            return False
        if (
            first.args[3:] != (*layer.loss.args[2:], layer.loss.outputs[1])
            or self._root(first.args[1]) is not logarithms
        ):
            return False
        if [node for _, node in self._readers(first.output)] != [second]:
            return False
        if self._root(second.args[1]) is not logarithms:
            return False
        layer.tangent = first.args[0]
        return all(self._read_gradient(layer, value, node) for value, node in self._readers(second.output))

    def _read_gradient(self, layer: _Layer, gradient: Value, node: Node) -> bool:
        if node.op is aten.t.default and node.output not in self.results:
            products = self.users.get(node.output, ())
            if not all(self._is_product(user, node.output, layer.hidden) for user in products):
                return False
            layer.d_weight += products
        elif node.op is aten.mm.default and node.args[0] is gradient and self._transposed(node.args[1], layer.matrix):
            layer.d_hidden.append(node)
        elif node.op is aten.mm.default and node.args[1] is gradient and self._transposed(node.args[0], layer.hidden):
            layer.d_matrix.append(node)
        elif node.op is aten.sum.dim_IntList and gradient.type.shape == layer.loss.args[0].type.shape:
            if node.args[1] != (0,) or node.kwargs:
                return False
            layer.d_bias.append(node)
        else:
            return False
        return True

    def _is_product(self, node: Node, left: Value, right: Value) -> bool:
        return node.op is aten.mm.default and node.args[0] is left and self._same(node.args[1], right)

    def _same(self, one: Value, other: Value) -> bool:
        return self._root(one) is self._root(other) and one.type.shape == other.type.shape

    def _transposed(self, one: Value, other: Value) -> bool:
        for value, of in ((one, other), (other, one)):
            maker = self._maker(value)
            if maker is not None and maker.op is aten.t.default and self._same(maker.args[0], of):
                return True
        return False

    def _root(self, value: Value) -> Value:
        """What `value` has all elements of, in their order."""
        while (maker := self.producers.get(value)) is not None and maker.op in _RESHAPES:
            value = maker.args[0]
        return value

    def _maker(self, value: Value) -> Node | None:
        return self.producers.get(self._root(value))

    def _readers(self, value: Value) -> Iterator[tuple[Value, Node]]:
        """What reads the value, or a reshape of it, and which of them. A result of the Graph is read by a stranger."""
        if value in self.results:
            yield value, _STRANGER
        for node in self.users.get(value, ()):
            if node.op in _RESHAPES:
                yield from self._readers(node.output)
            else:
                yield value, node


_STRANGER: Final = Node(aten.alias.default, (), {}, ())


def _operands(loss: Node, product: Node) -> _Layer | None:
    if product.op is aten.mm.default:
        return _Layer(loss, product.args[0], product.args[1], None)
    if product.op is aten.addmm.default and not product.kwargs and len(product.args) == 3:
        bias, hidden, matrix = product.args
        return _Layer(loss, hidden, matrix, bias) if bias.type.shape == matrix.type.shape[1:] else None
    return None


def _is_worth_it(layer: _Layer) -> bool:
    hidden, matrix = layer.hidden.type, layer.matrix.type
    if hidden.dtype not in (torch.float32, torch.float64):
        return False
    logits = hidden.shape[0] * matrix.shape[1] * hidden.dtype.itemsize
    gradients = (hidden.nbytes if layer.d_hidden else 0) + (matrix.nbytes if layer.d_matrix or layer.d_weight else 0)
    return logits >= max(SMALLEST_LOGITS, GAIN * gradients)


def _in_chunks(layer: _Layer, number: int) -> dict[Node, tuple[Node, ...]]:
    """What stands in the place of nodes."""
    hidden, matrix = layer.hidden.type, layer.matrix.type
    features, classes = matrix.shape
    weight = TensorType((classes, features), matrix.dtype, (features, 1), matrix.device)
    wanted = (bool(layer.d_hidden), bool(layer.d_weight or layer.d_matrix), bool(layer.d_bias))
    contiguous = TensorType(hidden.shape, hidden.dtype, (features, 1), hidden.device)
    bias = TensorType((classes,), matrix.dtype, (1,), matrix.device)
    d_hidden, d_weight, d_bias = (
        Value(number + place, type_) for place, type_ in enumerate((contiguous, weight, bias))
    )
    _, target, _, reduction, ignore_index = layer.loss.args
    args = (layer.hidden, layer.matrix, layer.bias, target, reduction, ignore_index, wanted)
    gradients = [value for value, is_wanted in zip((d_hidden, d_weight, d_bias), wanted, strict=True) if is_wanted]
    loss = layer.loss
    found: dict[Node, tuple[Node, ...]] = {
        loss: (Node(linear_cross_entropy, args, {}, (*loss.outputs, *gradients), loss.source),)
    }
    transposed = TensorType((features, classes), matrix.dtype, (1, features), matrix.device)
    row = TensorType((1, classes), matrix.dtype, (classes, 1), matrix.device)
    viewed = Value(number + 3, transposed)
    turn = Node(aten.t.default, (d_weight,), {}, (viewed,), loss.source)
    rows = Value(number + 4, row)
    lay = Node(aten.view.default, (d_bias, (1, classes)), {}, (rows,), loss.source)

    def scaled(nodes: Sequence[Node], value: Value, before: tuple[Node, ...] = ()) -> None:
        for place, node in enumerate(nodes):
            made = Node(aten.mul.Tensor, (value, layer.tangent), {}, node.outputs, node.source)
            found[node] = (*(before if place == 0 else ()), made)

    scaled(layer.d_hidden, d_hidden)
    scaled(layer.d_weight, d_weight)
    scaled(layer.d_matrix, viewed, (turn,))
    scaled([node for node in layer.d_bias if len(node.output.type.shape) == 1], d_bias)
    scaled([node for node in layer.d_bias if len(node.output.type.shape) == 2], rows, (lay,))
    return found
