"""Keeps images in channels-last order between convolutions.

Why: convolutions compute in blocks of channels. On row-major (NCHW) tensors oneDNN reorders each input and each output;
channels-last tensors are read and written as they are. One reorder at the entry and one at the exit of a run of
convolutions, pointwise ops and poolings replace two for every convolution; what is left of them is a copy that fuses
with its neighbours. What the caller gets keeps its strides. In that order, a convolution whose window is one pixel is a
matrix product.

Precision: oneDNN cuts the sums of row-major convolutions every few channels, and their rounding errors are up to four
times smaller for it (512 channels). Its channels-last convolutions do not, and neither does BLAS. So a float32
convolution becomes `direct_convolution`, which has a template and adds up chunks of channels; a product over many
channels is cut into a batch of products and a sum over the parts, which fuses with what comes next.

Before:
    def graph(x0: f32[1, 4, 5, 5], x1: f32[16, 4, 3, 3], x2: f32[8, 16, 1, 1]):
        t3 = aten.convolution.default(x0, x1, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        t4 = aten.relu.default(t3)
        t5 = aten.convolution.default(t4, x2, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        return t5
After:
    def graph(x0: f32[1, 4, 5, 5], x1: f32[16, 4, 3, 3], x2: f32[8, 16, 1, 1]):
        t3 = aten.clone.default(x0, memory_format=torch.channels_last)
        t4 = aten.view.default(x1, [1, 16, 1, 4, 3, 3])
        t5 = aten.permute.default(t4, [0, 2, 4, 5, 3, 1])
        t6 = aten.clone.default(t5, memory_format=torch.contiguous_format)
        t7 = direct_convolution(t3, t6, 16, [1, 1], [1, 1], [1, 1])
        t8 = aten.relu.default(t7)
        t9 = aten.permute.default(t8, [0, 2, 3, 1])
        t10 = aten.view.default(t9, [25, 16])
        t11 = aten.view.default(x2, [8, 16])
        t12 = aten.t.default(t11)
        t13 = aten.mm.default(t10, t12)
        t14 = aten.view.default(t13, [1, 5, 5, 8])
        t15 = aten.permute.default(t14, [0, 3, 1, 2])
        t16 = aten.clone.default(t15, memory_format=torch.contiguous_format)
        return t16
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil, prod
from typing import Any, Final

import torch

from dsjit.ir.graph import Arg, Graph, Node, Source, TensorType, Value, contiguous_strides
from dsjit.ops.builder import Builder
from dsjit.ops.direct_convolution import block_width, direct_convolution
from dsjit.ops.row import Pointwise, Reduction
from dsjit.ops.table import row_of
from dsjit.passes.rewrite import inputs_of, rebuild, substitute
from dsjit.passes.short_chains import product_in_parts

__all__ = ["channels_last"]

aten = torch.ops.aten

FEWEST_CONVOLUTIONS: Final = 2
"""With a single convolution the two reorders at the ends are all there is: nothing is won."""

LONGEST_CHAIN: Final = 144
"""Products that one chain of additions may take up: 16 channels of a 3x3 window. oneDNN's convolutions on row-major
images cut their sums there (with AVX-512); those on channels-last images, and BLAS, do not (see `short_chains`)."""

FEWEST_CHANNELS: Final = 16
"""Channels that a chain takes up at least: a register, a cache line. Chains over more of them take multiples."""

LARGEST_WINDOW: Final = 1024
"""Pixels of a window, gaps of its dilation included, up to which a thread's stack holds a block of the image."""

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


def _is_direct(node: Node) -> bool:
    """Whether the template convolves: float32, one group, a window whose reach fits a cache."""
    weight, dilation = node.args[1].type, node.args[5]
    reach = prod((size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilation, strict=True))
    return weight.dtype is torch.float32 and node.args[8] == 1 and weight.numel > 0 and reach <= LARGEST_WINDOW


def _chunk(channels: int, window: int) -> int:
    """How many input channels one chain of additions takes up."""
    most = max(FEWEST_CHANNELS, LONGEST_CHAIN // window)
    if channels <= most:
        return channels
    even = ceil(channels / ceil(channels / most))
    return ceil(even / FEWEST_CHANNELS) * FEWEST_CHANNELS


def _padded(b: Builder, value: Value, dim: int, size: int) -> Value:
    """`value` with zeros after it, `size` along `dim`."""
    type_ = value.type
    if type_.shape[dim] == size:
        return value
    shape = (*type_.shape[:dim], size - type_.shape[dim], *type_.shape[dim + 1 :])
    zeros = b.call(aten.full.default, shape, 0.0, dtype=type_.dtype, device=type_.device)
    whole = (*type_.shape[:dim], size, *type_.shape[dim + 1 :])
    joined = replace(type_, shape=whole, strides=contiguous_strides(whole))
    (result,) = b.call_typed(aten.cat.default, (joined,), (value, zeros), dim)
    return result


def _parts(node: Node) -> int:
    """Into how many parts of equal size to cut the input channels, so that sums are as precise as eager's.

    Only where results have the precision of the sums: bfloat16 and float16 round once, at the end.
    """
    weight = node.args[1].type
    _, channels, *window = weight.shape
    if weight.dtype is not torch.float32 or node.args[8] != 1:
        return 1
    parts = 1
    for count in range(2, channels // FEWEST_CHANNELS + 1):
        if channels // parts * prod(window) <= LONGEST_CHAIN:
            break
        if channels % count == 0:
            parts = count
    return parts


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
                self._multiply(node, image, _parts(node))
                return
            if _is_direct(node):
                self._convolve(node, image)
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

    def _multiply(self, node: Node, image: Value, parts: int) -> None:
        """A convolution whose window is one pixel is the product of the pixels and the weight."""
        b = Builder(self.count, node.source)
        batch, channels, height, width = image.type.shape
        out = node.output.type.shape[1]
        pixels = b.call(aten.permute.default, image, (0, 2, 3, 1))
        rows = b.call(aten.view.default, pixels, (batch * height * width, channels))
        matrix = b.call(aten.t.default, b.call(aten.view.default, node.args[1], (out, channels)))
        product = product_in_parts(b, rows, matrix, parts)
        self._finish(node, b, b.call(aten.view.default, product, (batch, height, width, out)))

    def _convolve(self, node: Node, image: Value) -> None:
        """A convolution by a weight in blocks, which adds up one chunk of channels after the other."""
        b = Builder(self.count, node.source)
        weight, bias, stride, padding, dilation = node.args[1:6]
        out, channels, *window = weight.type.shape
        width, chunk = block_width(out), _chunk(channels, prod(window))
        blocks, chunks = ceil(out / width), ceil(channels / chunk)
        weight = _padded(b, _padded(b, weight, 0, blocks * width), 1, chunks * chunk)
        weight = b.call(aten.view.default, weight, (blocks, width, chunks, chunk, *window))
        weight = b.call(aten.permute.default, weight, (0, 2, 4, 5, 3, 1))
        weight = b.call(aten.clone.default, weight, memory_format=torch.contiguous_format)
        type_ = _nhwc(node.output.type)
        (result,) = b.call_typed(direct_convolution, (type_,), image, weight, out, stride, padding, dilation)
        if bias is not None:
            result = b.call(aten.add.Tensor, result, b.call(aten.view.default, bias, (out, 1, 1)))
        self.moved[node.output] = result
        self.nodes += b.nodes
        self.count = b.next_id

    def _finish(self, node: Node, b: Builder, pixels: Value) -> None:
        """`pixels` (batch, height, width, channels) is what `node` computes."""
        self.moved[node.output] = b.call(aten.permute.default, pixels, (0, 3, 1, 2))
        self.nodes += b.nodes
        self.count = b.next_id

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
        if value not in self.moved:
            if value.type == _nhwc(value.type):
                return value
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
