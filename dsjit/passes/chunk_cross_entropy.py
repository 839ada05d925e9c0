"""A linear layer under a cross entropy, of so many rows that its logits outweigh its gradients, is computed in chunks.

Why: the logits of a language model are its largest activation by far, and eager holds them several times: as such,
as logarithms of probabilities, and as two gradients. `linear_cross_entropy` takes a few rows at a time through forward
and backward. What it keeps are the gradients of its operands, whose bytes do not grow with rows times classes. Those of
bfloat16 and float16 are kept in float32: they are rounded once, when they are multiplied by the gradient of the loss.
Logits in reduced precision may be converted to float32 first, by the model or by autocast.

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
        t5, t6, t7 = linear_cross_entropy(x0, t4, None, x2, 1, -100, [True, False, False], False)
        t8 = aten.mul.Tensor(t7, x3)
        return t5, t8
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from dsjit.ir.dtypes import FLOATING, compute_dtype
from dsjit.ir.graph import Graph, Node, TensorType, Value, contiguous_strides
from dsjit.ops.builder import Builder
from dsjit.ops.cross_entropy import MEAN, SUM, linear_cross_entropy
from dsjit.ops.wide_product import has_matrix_units
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
            builder = Builder(number, loss.source)
            replaced.update(_in_chunks(layer, builder))
            number = builder.next_id
    if not replaced:
        return graph
    nodes = [new for node in graph.nodes for new in replaced.get(node, (node,))]
    return eliminate_dead_code(replace(graph, nodes=tuple(nodes)))


@dataclass(slots=True)
class _Layer:
    """Of the logits hidden @ matrix + bias. widened: whether they are converted to float32. tangent: the gradient of
    the loss. The lists are of nodes that compute gradients from that of the logits; `d_weight` those that give the
    matrix's as (classes, features)."""

    loss: Node
    hidden: Value
    matrix: Value
    bias: Value | None
    widened: bool = False
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
        if softmax is None or softmax.op is not aten._log_softmax.default:
            return None
        logits, readers = softmax.args[0], [softmax]
        if softmax.args[1] not in (-1, len(logits.type.shape) - 1):
            return None
        product = self._maker(logits)
        if product is not None and _widens(product):
            if [node for _, node in self._readers(product.output)] != readers:
                return None
            readers, product = [product], self._maker(product.args[0])
        layer = None if product is None else _operands(loss, product)
        if layer is None or product is None or product.output.type.shape != logarithms.type.shape:
            return None
        layer.widened = logarithms.type.dtype is not product.output.type.dtype
        backwards = [node for _, node in self._readers(softmax.output) if node is not loss]
        if [node for _, node in self._readers(product.output)] != readers or len(backwards) not in (0, 2):
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
        readers = list(self._readers(second.output))
        narrow = layer.hidden.type.dtype
        if second.output.type.dtype is not narrow:
            if not all(_is_cast(node, narrow) for _, node in readers):
                return False
            readers = [each for _, node in readers for each in self._readers(node.output)]
        return all(self._read_gradient(layer, value, node) for value, node in readers)

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


def _widens(node: Node) -> bool:
    return node.op is aten._to_copy.default and _is_cast(node, compute_dtype(node.args[0].type.dtype))


def _is_cast(node: Node, dtype: torch.dtype) -> bool:
    """Whether it changes the dtype, to this one, and nothing else."""
    if node.op is not aten._to_copy.default:
        return False
    before, after = node.args[0].type, node.output.type
    return after.dtype is dtype is not before.dtype and replace(after, dtype=before.dtype) == before


def _is_worth_it(layer: _Layer) -> bool:
    hidden = layer.hidden.type
    if hidden.dtype not in FLOATING:
        return False
    if hidden.device.type == "cpu" and has_matrix_units(hidden.dtype):
        return False  # two of the products are float32's in chunks, which would take several times as long
    operands = ((layer.hidden, layer.d_hidden), (layer.matrix, layer.d_matrix or layer.d_weight))
    kept = sum([_gradient_type(value.type, value.type.shape).nbytes for value, nodes in operands if nodes])
    logarithms: TensorType = layer.loss.args[0].type
    return logarithms.nbytes >= max(SMALLEST_LOGITS, GAIN * kept)


def _gradient_type(like: TensorType, shape: tuple[int, ...]) -> TensorType:
    """Of the gradient of such an operand, until it is rounded."""
    return TensorType(shape, compute_dtype(like.dtype), contiguous_strides(shape), like.device)


def _in_chunks(layer: _Layer, b: Builder) -> dict[Node, tuple[Node, ...]]:
    """What stands in the place of nodes. b: takes the op, and numbers what is new."""
    loss, (features, classes) = layer.loss, layer.matrix.type.shape
    wanted = (bool(layer.d_hidden), bool(layer.d_weight or layer.d_matrix), bool(layer.d_bias))
    shapes = (layer.hidden.type.shape, (classes, features), (classes,))
    types = [
        _gradient_type(layer.matrix.type, shape) for shape, is_wanted in zip(shapes, wanted, strict=True) if is_wanted
    ]
    _, target, _, reduction, ignore_index = loss.args
    args = (layer.hidden, layer.matrix, layer.bias, target, reduction, ignore_index, wanted, layer.widened)
    gradients = iter(b.call_typed(linear_cross_entropy, tuple(types), *args))
    d_hidden, d_weight, d_bias = (next(gradients) if is_wanted else None for is_wanted in wanted)
    found: dict[Node, tuple[Node, ...]] = {loss: (replace(b.nodes[0], outputs=(*loss.outputs, *b.nodes[0].outputs)),)}
    readers = (
        (d_hidden, layer.d_hidden, ()),
        (d_weight, layer.d_weight, ()),
        (d_weight, layer.d_matrix, (aten.t.default,)),
        (d_bias, [node for node in layer.d_bias if len(node.output.type.shape) == 1], ()),
        (
            d_bias,
            [node for node in layer.d_bias if len(node.output.type.shape) == 2],
            (aten.view.default, (1, classes)),
        ),
    )
    for gradient, nodes, view in readers:
        for node in nodes:
            steps = Builder(b.next_id, node.source)
            seen = steps.call(view[0], gradient, *view[1:]) if view else gradient
            scaled = steps.call(aten.mul.Tensor, seen, layer.tangent)
            if scaled.type.dtype is not node.output.type.dtype:
                steps.call(aten._to_copy.default, scaled, dtype=node.output.type.dtype)
            b.next_id = steps.next_id
            found[node] = (*steps.nodes[:-1], replace(steps.nodes[-1], outputs=node.outputs))
    return found
