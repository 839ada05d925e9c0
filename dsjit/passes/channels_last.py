"""Keeps images in channels-last order between convolutions.

Why: convolutions compute in blocks of channels. On row-major (NCHW) tensors oneDNN reorders each input and each output;
channels-last tensors are read and written as they are. One reorder at the entry and one at the exit of a run of
convolutions, pointwise ops and poolings replace two for every convolution; what is left of them is a copy that fuses
with its neighbours. What the caller gets keeps its strides. In that order, a convolution whose window is one pixel is a
matrix product.

In a backward, the gradient of an image is a convolution of the gradient of the result by the weight with its window
turned around, or a product when the window is one pixel. The gradient of a large weight of one pixel is a sum of
products, one for each image. For strides and groups, and for other weights, it is torch's.

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

from dsjit.ir.graph import UNDEFINED, Arg, Graph, Node, Source, TensorType, Value, contiguous_strides
from dsjit.ops.builder import Builder
from dsjit.ops.direct_convolution import block_width, direct_convolution
from dsjit.ops.row import Pointwise, Reduction
from dsjit.ops.table import row_of
from dsjit.passes.rewrite import inputs_of, rebuild, substitute
from dsjit.passes.short_chains import product_by_images, product_in_parts

__all__ = ["channels_last", "is_worthwhile", "moved_values"]

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

BACKWARDS: Final[dict[Any, tuple[int, ...]]] = {
    aten.max_pool2d_with_indices_backward.default: (0, 1, 7),
}
"""Ops whose CPU kernels return a channels-last gradient of the image when these operands are channels-last."""

"""Of a gradient that nobody asked for."""


def channels_last(graph: Graph) -> Graph:
    """`graph` with its two-dimensional convolutions, and what lies between them, in channels-last order."""
    return _Reorder(graph).run() if is_worthwhile(graph) else graph


def moved_values(graph: Graph) -> dict[Value, TensorType]:
    """The Values that `channels_last` makes in channels-last order, with their types there."""
    if not is_worthwhile(graph):
        return {}
    reorder = _Reorder(graph)
    reorder.run()
    return {value: moved.type for value, moved in reorder.moved.items() if value not in reorder.copied}


def is_worthwhile(graph: Graph) -> bool:
    """Whether the Graph has convolutions enough, or gradients of such."""
    return sum(_is_convolution(node) or _is_backward(node) for node in graph.nodes) >= FEWEST_CONVOLUTIONS


def _is_backward(node: Node) -> bool:
    if node.op is not aten.convolution_backward.default:
        return False
    return _is_reordered(node.args[1], node.args[2], node.args[7])


def _is_convolution(node: Node) -> bool:
    if node.op is not aten.convolution.default:
        return False
    return _is_reordered(node.args[0], node.args[1], node.args[6])


def _is_reordered(image: Value, weight: Value, transposed: Arg) -> bool:
    return (
        len(image.type.shape) == 4
        and not transposed
        and image.type.device.type == "cpu"
        and image.type.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and image.type.numel > 0
        and weight.type.shape[2:] != ()
        and torch._C._has_mkldnn
    )


def _is_product(weight: TensorType, stride: Arg, padding: Arg, groups: Arg) -> bool:
    """Whether the convolution only mixes channels: float32, one pixel, stride 1, no padding, one group."""
    return (
        weight.shape[2:] == (1, 1)
        and weight.is_contiguous
        and weight.dtype is torch.float32
        and set(stride) == {1}
        and set(padding) == {0}
        and groups == 1
    )


def _is_direct(weight: TensorType, dilation: Arg, groups: Arg) -> bool:
    """Whether the template convolves: float32, one group, a window whose reach fits a cache."""
    reach = prod((size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilation, strict=True))
    return weight.dtype is torch.float32 and groups == 1 and weight.numel > 0 and reach <= LARGEST_WINDOW


def _is_large(weight: TensorType, image: TensorType) -> bool:
    """Whether BLAS is faster at the gradient of the weight: it has more elements to share out than an image has pixels
    to add up (measured with AVX-512: oneDNN is faster at 5 times as many, BLAS from 80 times on)."""
    return weight.numel >= 32 * prod(image.shape[2:])


def _turned_padding(weight: TensorType, padding: Arg, dilation: Arg) -> list[int]:
    """Of the convolution that gives the gradient of an image from that of a convolution of stride 1."""
    windows = zip(weight.shape[2:], padding, dilation, strict=True)
    return [step * (size - 1) - before for size, before, step in windows]


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


def _parts(channels: int) -> int:
    """Into how many parts of equal size to cut the channels of a product, so that sums are as precise as eager's."""
    parts = 1
    for count in range(2, channels // FEWEST_CHANNELS + 1):
        if channels // parts <= LONGEST_CHAIN:
            break
        if channels % count == 0:
            parts = count
    return parts


def _pixels(b: Builder, image: Value) -> Value:
    """The matrix (pixels, channels) of a channels-last image."""
    batch, channels, height, width = image.type.shape
    pixels = b.call(aten.permute.default, image, (0, 2, 3, 1))
    return b.call(aten.view.default, pixels, (batch * height * width, channels))


def _matrix(b: Builder, weight: Value) -> Value:
    """The matrix (output channels, input channels) of a weight whose window is one pixel."""
    return b.call(aten.view.default, weight, weight.type.shape[:2])


def _product(b: Builder, rows: Value, matrix: Value) -> Value:
    return product_in_parts(b, rows, matrix, _parts(matrix.type.shape[0]))


def _convolution(
    b: Builder, image: Value, weight: Value, result: TensorType, stride: Arg, padding: Arg, dilation: Arg
) -> Value:
    """A convolution by a weight in blocks, which adds up one chunk of channels after the other."""
    out, channels, *window = weight.type.shape
    width, chunk = block_width(out), _chunk(channels, prod(window))
    blocks, chunks = ceil(out / width), ceil(channels / chunk)
    weight = _padded(b, _padded(b, weight, 0, blocks * width), 1, chunks * chunk)
    weight = b.call(aten.view.default, weight, (blocks, width, chunks, chunk, *window))
    weight = b.call(aten.permute.default, weight, (0, 2, 4, 5, 3, 1))
    weight = b.call(aten.clone.default, weight, memory_format=torch.contiguous_format)
    (value,) = b.call_typed(direct_convolution, (_nhwc(result),), image, weight, out, stride, padding, dilation)
    return value


def _nhwc(type_: TensorType) -> TensorType:
    _, channels, height, width = type_.shape
    return replace(type_, strides=(channels * height * width, 1, width * channels, channels))


@dataclass(slots=True)
class _Reorder:
    """moved: for each Value that is now channels-last, its new Value. restored: copies of such Values in the old order.
    copied: Values that exist in both orders, as they were made outside and a channels-last copy was added.
    results: of the Graph. handed_out: new Values that are results in the place of channels-last copies."""

    graph: Graph
    nodes: list[Node] = field(default_factory=list)
    moved: dict[Value, Value] = field(default_factory=dict)
    restored: dict[Value, Value] = field(default_factory=dict)
    copied: set[Value] = field(default_factory=set)
    results: set[Value] = field(default_factory=set)
    handed_out: set[Value] = field(default_factory=set)
    count: int = 0

    def run(self) -> Graph:
        self.results = set(self.graph.results())
        self.count = self.graph.next_id()
        for node in self.graph.nodes:
            self._visit(node)
        for value in tuple(self.graph.results()):
            self._restore(value, None)
        return rebuild(self.graph, self.nodes, self.restored)

    def _visit(self, node: Node) -> None:
        if _is_convolution(node):
            self._compute(node)
            return
        if _is_backward(node):
            self._differentiate(node)
            return
        inputs = inputs_of(node)
        if self._is_reorder(node):
            original: Value = node.args[0]
            self.moved[node.output] = self.moved.get(original, original)
            return
        if not any(value in self.moved for value in inputs):
            self.nodes.append(node)
            return
        row = row_of(node.op)
        rule = row.rule if row is not None else None
        if node.op in BACKWARDS and len(node.args[1].type.shape) == 4:
            images = {position: self._move(node.args[position], node.source) for position in BACKWARDS[node.op]}
            self._emit(node, substitute(node, self.restored), images, images_out=1)
        elif node.op in POOLS or (isinstance(rule, Pointwise) and self._keeps_order(node, inputs)):
            self._emit(node, substitute(node, self.moved), {})
        elif isinstance(rule, Reduction):
            # A kernel reads its operand in any order, and its own result is as before.
            self.nodes.append(substitute(node, self.moved))
        else:
            for value in inputs:
                self._restore(value, node.source)
            self.nodes.append(substitute(node, self.restored))

    def _is_reorder(self, node: Node) -> bool:
        """Whether the node copies, from one order to the other, what is there in channels-last order."""
        if node.op is not aten.clone.default or len(node.output.type.shape) != 4:
            return False
        original, before, after = node.args[0], node.args[0].type, node.output.type
        is_result = node.output in self.results
        if original not in self.moved or original in self.copied:
            return before != after and before == _nhwc(before) and after.is_contiguous and not is_result
        moved = self.moved[original]
        if before == after or after != moved.type or (is_result and moved in self.handed_out):
            return False
        if is_result:  # memory of its own, which no other result may share
            self.handed_out.add(moved)
        return True

    def _compute(self, node: Node) -> None:
        image = self._move(node.args[0], node.source)
        weight, bias, stride, padding, dilation = node.args[1:6]
        groups = node.args[8]
        if bias is None and _is_product(weight.type, stride, padding, groups):
            b = Builder(self.count, node.source)
            rows, columns = _pixels(b, image), b.call(aten.t.default, _matrix(b, weight))
            self._finish(node.output, b, _product(b, rows, columns))
        elif _is_direct(weight.type, dilation, groups):
            b = Builder(self.count, node.source)
            result = _convolution(b, image, weight, node.output.type, stride, padding, dilation)
            if bias is not None:
                result = b.call(aten.add.Tensor, result, b.call(aten.view.default, bias, (weight.type.shape[0], 1, 1)))
            self._finish(node.output, b, result)
        else:
            # torch would reorder the weight in each call, too, with a strided copy that is far slower than a kernel.
            weight = self._move(weight, node.source)
            self._emit(node, substitute(node, self.restored), {0: image, 1: weight})

    def _differentiate(self, node: Node) -> None:
        tangent, image = (self._move(value, node.source) for value in node.args[:2])
        weight, _, stride, padding, dilation = node.args[2:7]
        groups, wanted = node.args[9:11]
        turned = _turned_padding(weight.type, padding, dilation)
        b = Builder(self.count, node.source)
        if wanted[0] and _is_product(weight.type, stride, padding, groups):
            gradient = _product(b, _pixels(b, tangent), _matrix(b, weight))
            self._finish(node.outputs[0], b, gradient)
            wanted = (False, *wanted[1:])
        elif wanted[0] and set(stride) == {1} and _is_direct(weight.type, dilation, groups) and min(turned) >= 0:
            around = b.call(aten.permute.default, b.call(aten.flip.default, weight, (2, 3)), (1, 0, 2, 3))
            around = b.call(aten.clone.default, around, memory_format=torch.contiguous_format)
            gradient = _convolution(b, tangent, around, node.outputs[0].type, stride, turned, dilation)
            self._finish(node.outputs[0], b, gradient)
            wanted = (False, *wanted[1:])
        if wanted[1] and _is_product(weight.type, stride, padding, groups) and _is_large(weight.type, image.type):
            b = Builder(self.count, node.source)
            gradient = product_by_images(b, tangent, image)
            self._finish(node.outputs[1], b, b.call(aten.view.default, gradient, weight.type.shape))
            wanted = (wanted[0], False, *wanted[2:])
        if any(wanted):
            # A weight whose window is one pixel is in both orders.
            weight = weight if prod(weight.type.shape[2:]) == 1 else self._move(weight, node.source)
            args = (tangent, image, weight, *node.args[3:10], wanted)
            outputs = [self._new(_nhwc(value.type)) if ask else self._new(UNDEFINED)
                       for value, ask in zip(node.outputs[:2], wanted[:2], strict=True)]  # fmt: skip
            outputs.append(node.outputs[2])
            for old, new, ask in zip(node.outputs[:2], outputs[:2], wanted[:2], strict=True):
                if ask:
                    self.moved[old] = new
            self.nodes.append(replace(node, args=args, outputs=tuple(outputs)))

    def _finish(self, output: Value, b: Builder, result: Value) -> None:
        """`output` is what `result` is: an image, or a matrix (pixels, channels)."""
        if len(result.type.shape) == 2:
            batch, channels, height, width = output.type.shape
            image = b.call(aten.view.default, result, (batch, height, width, channels))
            result = b.call(aten.permute.default, image, (0, 3, 1, 2))
        self.moved[output] = result
        self.nodes += b.nodes
        self.count = b.next_id

    def _keeps_order(self, node: Node, inputs: list[Value]) -> bool:
        """Whether a pointwise result should be channels-last: its largest operands are."""
        shape = node.output.type.shape
        whole = [value for value in inputs if value.type.shape == shape]
        return len(shape) == 4 and bool(whole) and any(value in self.moved for value in whole)

    def _emit(self, node: Node, renewed: Node, replaced: dict[int, Value], images_out: int | None = None) -> None:
        """Append `renewed` with its first `images_out` outputs, or all, channels-last."""
        args: list[Arg] = list(renewed.args)
        for position, value in replaced.items():
            args[position] = value
        kwargs = dict(renewed.kwargs)
        if "memory_format" in kwargs:
            kwargs["memory_format"] = torch.preserve_format
        images = node.outputs[:images_out]
        outputs = [self._new(_nhwc(value.type)) for value in images]
        self.moved.update(zip(images, outputs, strict=True))
        outputs += node.outputs[len(images) :]
        self.nodes.append(replace(renewed, args=tuple(args), kwargs=kwargs, outputs=tuple(outputs)))

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
        where = source or self.nodes[-1].source
        if value.type.shape[2:] == (1, 1) and value.type.is_contiguous:
            b = Builder(self.count, where)
            pixels = b.call(aten.permute.default, self.moved[value], (0, 2, 3, 1))
            self.restored[value] = b.call(aten.view.default, pixels, value.type.shape)
            self.nodes += b.nodes
            self.count = b.next_id
            return
        old = self._new(value.type)
        kwargs = {"memory_format": torch.contiguous_format}
        self.nodes.append(Node(aten.clone.default, (self.moved[value],), kwargs, (old,), where))
        self.restored[value] = old

    def _new(self, type_: TensorType) -> Value:
        self.count += 1
        return Value(self.count - 1, type_)
