"""Keeps images in channels-last order between convolutions.

Why: oneDNN, which runs convolutions, computes in blocks of channels. On row-major (NCHW) tensors it reorders each
input and each output; channels-last tensors it reads and writes as they are. One reorder at the entry and one at the
exit of a run of convolutions, pointwise ops and poolings replace two for every convolution; what is left of them is a
copy that fuses with its neighbours. What the caller gets keeps its strides. In that order, a convolution whose window
is one pixel is a matrix product.

Before:
    def graph(x0: f32[1, 4, 5, 5], x1: f32[8, 4, 3, 3], x2: f32[8, 8, 1, 1]):
        t3 = aten.convolution.default(x0, x1, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        t4 = aten.relu.default(t3)
        t5 = aten.convolution.default(t4, x2, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        return t5
After:
    def graph(x0: f32[1, 4, 5, 5], x1: f32[8, 4, 3, 3], x2: f32[8, 8, 1, 1]):
        t3 = aten.clone.default(x0, memory_format=torch.channels_last)
        t4 = aten.clone.default(x1, memory_format=torch.channels_last)
        t5 = aten.convolution.default(t3, t4, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        t6 = aten.relu.default(t5)
        t7 = aten.permute.default(t6, [0, 2, 3, 1])
        t8 = aten.view.default(t7, [-1, 8])
        t9 = aten.view.default(x2, [8, 8])
        t10 = aten.t.default(t9)
        t11 = aten.mm.default(t8, t10)
        t12 = aten.view.default(t11, [1, 5, 5, 8])
        t13 = aten.permute.default(t12, [0, 3, 1, 2])
        t14 = aten.clone.default(t13, memory_format=torch.contiguous_format)
        return t14
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch

from dsjit.ir.graph import Arg, Graph, Node, Source, TensorType, Value, contiguous_strides
from dsjit.ops.row import Pointwise, Reduction
from dsjit.ops.table import row_of
from dsjit.passes.rewrite import inputs_of, rebuild, substitute

__all__ = ["channels_last"]

aten = torch.ops.aten

FEWEST_CONVOLUTIONS: Final = 2
"""With a single convolution the two reorders at the ends are all there is: nothing is won."""

POOLS: Final[frozenset[Any]] = frozenset(
    {aten.max_pool2d_with_indices.default, aten.avg_pool2d.default, aten._adaptive_avg_pool2d.default}
)
"""Poolings whose CPU kernels read and return channels-last tensors."""


def channels_last(graph: Graph) -> Graph:
    """`graph` with its two-dimensional convolutions, and what lies between them, in channels-last order."""
    if sum(_is_convolution(node) for node in graph.nodes) < FEWEST_CONVOLUTIONS:
        return graph
    return _Reorder(graph).run()


def _is_convolution(node: Node) -> bool:
    if node.op is not aten.convolution.default:
        return False
    image, weight, transposed = node.args[0].type, node.args[1].type, node.args[6]
    return (
        len(image.shape) == 4
        and not transposed
        and image.device.type == "cpu"
        and image.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and image.numel > 0
        and weight.shape[2:] != ()
        and torch._C._has_mkldnn
    )


def _is_product(node: Node) -> bool:
    """Whether the convolution only mixes channels: one pixel, stride 1, no padding, one group, no bias."""
    image, weight, bias, stride, padding = node.args[:5]
    return (
        bias is None
        and weight.type.shape[2:] == (1, 1)
        and weight.type.is_contiguous
        and set(stride) == {1}
        and set(padding) == {0}
        and node.args[8] == 1
        and image.type.dtype is torch.float32
    )


def _nhwc(type_: TensorType) -> TensorType:
    _, channels, height, width = type_.shape
    return replace(type_, strides=(channels * height * width, 1, width * channels, channels))


@dataclass(slots=True)
class _Reorder:
    """moved: for each Value that is now channels-last, its new Value. restored: copies of such Values in the old order.
    copied: Values that exist in both orders, as they were made outside and a channels-last copy was added."""

    graph: Graph
    nodes: list[Node] = field(default_factory=list)
    moved: dict[Value, Value] = field(default_factory=dict)
    restored: dict[Value, Value] = field(default_factory=dict)
    copied: set[Value] = field(default_factory=set)
    count: int = 0

    def run(self) -> Graph:
        self.count = self.graph.next_id()
        for node in self.graph.nodes:
            self._visit(node)
        for value in tuple(self.graph.results()):
            self._restore(value, None)
        return rebuild(self.graph, self.nodes, self.restored)

    def _visit(self, node: Node) -> None:
        if _is_convolution(node):
            image = self._move(node.args[0], node.source)
            if _is_product(node):
                self._multiply(node, image)
                return
            # torch would reorder the weight in each call, too, with a strided copy that is far slower than a kernel.
            weight = self._move(node.args[1], node.source)
            self._emit(node, substitute(node, self.restored), {0: image, 1: weight})
            return
        inputs = inputs_of(node)
        if not any(value in self.moved for value in inputs):
            self.nodes.append(node)
            return
        row = row_of(node.op)
        rule = row.rule if row is not None else None
        if node.op in POOLS or (isinstance(rule, Pointwise) and self._keeps_order(node, inputs)):
            self._emit(node, substitute(node, self.moved), {})
        elif isinstance(rule, Reduction):
            # A kernel reads its operand in any order, and its own result is as before.
            self.nodes.append(substitute(node, self.moved))
        else:
            for value in inputs:
                self._restore(value, node.source)
            self.nodes.append(substitute(node, self.restored))

    def _multiply(self, node: Node, image: Value) -> None:
        """A convolution whose window is one pixel is the product of the pixels and the weight."""
        source = node.source
        batch, channels, height, width = image.type.shape
        out = node.output.type.shape[1]
        pixels = self._view(aten.permute.default, image, (0, 2, 3, 1), (batch, height, width, channels), source)
        rows = self._view(aten.view.default, pixels, (-1, channels), (batch * height * width, channels), source)
        matrix = self._view(aten.view.default, node.args[1], (out, channels), (out, channels), source)
        turned = self._new(replace(matrix.type, shape=(channels, out), strides=(1, channels)))
        self.nodes.append(Node(aten.t.default, (matrix,), {}, (turned,), source))
        product = self._new(replace(rows.type, shape=(rows.type.shape[0], out), strides=(out, 1)))
        self.nodes.append(Node(aten.mm.default, (rows, turned), {}, (product,), source))
        shape = (batch, height, width, out)
        result = self._view(aten.view.default, product, shape, shape, source)
        moved = self._new(_nhwc(node.output.type))
        self.nodes.append(Node(aten.permute.default, (result, (0, 3, 1, 2)), {}, (moved,), source))
        self.moved[node.output] = moved

    def _view(self, op: Any, value: Value, sizes: tuple[int, ...], shape: tuple[int, ...], source: Source) -> Value:
        """Append a view whose result is row-major."""
        result = self._new(replace(value.type, shape=shape, strides=contiguous_strides(shape)))
        self.nodes.append(Node(op, (value, sizes), {}, (result,), source))
        return result

    def _keeps_order(self, node: Node, inputs: list[Value]) -> bool:
        """Whether a pointwise result should be channels-last: its largest operands are."""
        shape = node.output.type.shape
        whole = [value for value in inputs if value.type.shape == shape]
        return len(shape) == 4 and bool(whole) and any(value in self.moved for value in whole)

    def _emit(self, node: Node, renewed: Node, replaced: dict[int, Value]) -> None:
        """Append `renewed` with channels-last outputs."""
        args: list[Arg] = list(renewed.args)
        for position, value in replaced.items():
            args[position] = value
        kwargs = dict(renewed.kwargs)
        if "memory_format" in kwargs:
            kwargs["memory_format"] = torch.preserve_format
        outputs = tuple(self._new(_nhwc(value.type)) for value in node.outputs)
        for old, new in zip(node.outputs, outputs, strict=True):
            self.moved[old] = new
        self.nodes.append(replace(renewed, args=tuple(args), kwargs=kwargs, outputs=outputs))

    def _move(self, value: Value, source: Source) -> Value:
        if value.type == _nhwc(value.type):
            return value
        if value not in self.moved:
            new = self._new(_nhwc(value.type))
            self.nodes.append(
                Node(aten.clone.default, (value,), {"memory_format": torch.channels_last}, (new,), source)
            )
            self.moved[value] = new
            self.copied.add(value)
        return self.moved[value]

    def _restore(self, value: Value, source: Source | None) -> None:
        """Make sure that a Value that moved is there in its old order, for those who cannot read the new one."""
        if value not in self.moved or value in self.restored or value in self.copied:
            return
        if value.type == self.moved[value].type:
            self.restored[value] = self.moved[value]
            return
        old = self._new(value.type)
        kwargs = {"memory_format": torch.contiguous_format}
        where = source or self.nodes[-1].source
        self.nodes.append(Node(aten.clone.default, (self.moved[value],), kwargs, (old,), where))
        self.restored[value] = old

    def _new(self, type_: TensorType) -> Value:
        self.count += 1
        return Value(self.count - 1, type_)
