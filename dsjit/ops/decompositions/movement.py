"""Ops that move elements to other places, or put constants around them: views, and concatenations of parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from dsjit.ir.graph import TensorType, Value, contiguous_strides
from dsjit.ops.decompositions.precision import Outputs, Rewritten, rewrites
from dsjit.ops.row import GraphBuilder, OpRow

__all__ = ["ROWS"]

aten = torch.ops.aten


def _concatenated(b: GraphBuilder, parts: Sequence[Value], dim: int) -> Value:
    """The parts that are not empty, one after the other."""
    filled = [part for part in parts if part.type.shape[dim]] or [parts[0]]
    if len(filled) == 1:
        return filled[0]
    first = filled[0].type
    shape = (*first.shape[:dim], sum(part.type.shape[dim] for part in filled), *first.shape[dim + 1 :])
    type_ = TensorType(shape, first.dtype, contiguous_strides(shape), first.device)
    return b.call_typed(aten.cat.default, (type_,), tuple(filled), dim)[0]


def _padded(b: GraphBuilder, x: Value, dim: int, before: int, after: int, value: float) -> Value:
    """`x` with so many elements of `value` before and after it; negative counts take some of its own away."""
    size = x.type.shape[dim]
    if before < 0 or after < 0:
        x = b.call(aten.slice.Tensor, x, dim, max(-before, 0), size - max(-after, 0))

    def border(count: int) -> Value:
        shape = (*x.type.shape[:dim], max(count, 0), *x.type.shape[dim + 1 :])
        return b.call(aten.full.default, shape, value, dtype=x.type.dtype, device=x.type.device)

    return _concatenated(b, [border(before), x, border(after)] if max(before, after) > 0 else [x], dim)


def _copied(b: GraphBuilder, x: Value, shape: Sequence[int]) -> Value:
    """The elements of `x`, in their order, as a tensor of `shape`."""
    dense = b.call(aten.clone.default, x, memory_format=torch.contiguous_format)
    return b.call(aten.view.default, dense, tuple(shape))


def _wrapped(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def constant_pad_nd(b: GraphBuilder, outputs: Outputs, *, self: Value, pad: tuple[int, ...], value: float) -> Rewritten:
    """pad: pairs of counts, from the last dimension on."""
    result = self
    for number, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        result = _padded(b, result, len(self.type.shape) - 1 - number, before, after, value)
    return (result if any(pad) else b.call(aten.clone.default, self),)


def slice_backward(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    grad_output: Value,
    input_sizes: tuple[int, ...],
    dim: int,
    start: int,
    end: int,
    step: int,
) -> Rewritten:
    """Zeros around the gradient of a slice."""
    dim = _wrapped(dim, len(input_sizes))
    if step != 1:
        return None
    first = range(input_sizes[dim])[slice(start, end)].start
    length = grad_output.type.shape[dim]
    return (_padded(b, grad_output, dim, first, input_sizes[dim] - first - length, 0),)


def select_backward(
    b: GraphBuilder, outputs: Outputs, *, grad_output: Value, input_sizes: tuple[int, ...], dim: int, index: int
) -> Rewritten:
    """Zeros around the gradient of one element of `dim`."""
    dim = _wrapped(dim, len(input_sizes))
    before = _wrapped(index, input_sizes[dim])
    row = b.call(aten.unsqueeze.default, grad_output, dim)
    return (_padded(b, row, dim, before, input_sizes[dim] - before - 1, 0),)


def _replaced(b: GraphBuilder, self: Value, src: Value, dim: int, start: int) -> Value | None:
    """`self` with `src` in place of as many elements from `start` on."""
    if self.type.dtype is not src.type.dtype:
        return None
    size, end = self.type.shape[dim], start + src.type.shape[dim]
    before, after = (b.call(aten.slice.Tensor, self, dim, *span) for span in ((0, start), (end, size)))
    return _concatenated(b, [before, src, after], dim)


def slice_scatter(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    self: Value,
    src: Value,
    dim: int,
    start: int | None,
    end: int | None,
    step: int,
) -> Rewritten:
    dim = _wrapped(dim, len(self.type.shape))
    place = range(self.type.shape[dim])[slice(start, end)]
    expected = (*self.type.shape[:dim], len(place), *self.type.shape[dim + 1 :])
    if step != 1 or src.type.shape != expected:
        return None
    result = _replaced(b, self, src, dim, place.start)
    return None if result is None else (result,)


def select_scatter(b: GraphBuilder, outputs: Outputs, *, self: Value, src: Value, dim: int, index: int) -> Rewritten:
    dim = _wrapped(dim, len(self.type.shape))
    row = b.call(aten.unsqueeze.default, src, dim)
    result = _replaced(b, self, row, dim, _wrapped(index, self.type.shape[dim]))
    return None if result is None else (result,)


def roll(
    b: GraphBuilder, outputs: Outputs, *, self: Value, shifts: tuple[int, ...], dims: tuple[int, ...]
) -> Rewritten:
    """Without `dims`, all elements are one row."""
    shape = self.type.shape
    if not dims:
        row = _copied(b, self, (self.type.numel,))
        return (b.call(aten.view.default, _rolled(b, row, 0, shifts[0]), shape),)
    result = self
    for dim, shift in zip(dims, shifts, strict=True):
        result = _rolled(b, result, _wrapped(dim, len(shape)), shift)
    return (b.call(aten.clone.default, self) if result is self else result,)


def _rolled(b: GraphBuilder, x: Value, dim: int, shift: int) -> Value:
    size = x.type.shape[dim]
    start = -shift % size if size else 0
    if start == 0:
        return x
    parts = [b.call(aten.slice.Tensor, x, dim, *span) for span in ((start, size), (0, start))]
    return _concatenated(b, parts, dim)


def repeat(b: GraphBuilder, outputs: Outputs, *, self: Value, repeats: tuple[int, ...]) -> Rewritten:
    """Each dimension as two: the copies, and the elements."""
    shape = (1,) * (len(repeats) - len(self.type.shape)) + self.type.shape
    result = b.call(aten.expand.default, self, shape)
    for dim in range(len(shape)):
        result = b.call(aten.unsqueeze.default, result, 2 * dim)
    pairs = [number for pair in zip(repeats, shape, strict=True) for number in pair]
    return (_copied(b, b.call(aten.expand.default, result, tuple(pairs)), outputs[0].shape),)


def pixel_shuffle(b: GraphBuilder, outputs: Outputs, *, self: Value, upscale_factor: int) -> Rewritten:
    """Channels become pixels (Shi et al., 2016)."""
    *batch, channels, height, width = self.type.shape
    factor, rank = upscale_factor, len(batch)
    parts = (*batch, channels // factor**2, factor, factor, height, width)
    order = (*range(rank), rank, rank + 3, rank + 1, rank + 4, rank + 2)
    split = b.call(aten.view.default, self, parts)
    return (_copied(b, b.call(aten.permute.default, split, order), outputs[0].shape),)


def pixel_unshuffle(b: GraphBuilder, outputs: Outputs, *, self: Value, downscale_factor: int) -> Rewritten:
    """Pixels become channels."""
    *batch, channels, height, width = self.type.shape
    factor, rank = downscale_factor, len(batch)
    parts = (*batch, channels, height // factor, factor, width // factor, factor)
    order = (*range(rank), rank, rank + 2, rank + 4, rank + 1, rank + 3)
    split = b.call(aten.view.default, self, parts)
    return (_copied(b, b.call(aten.permute.default, split, order), outputs[0].shape),)


def channel_shuffle(b: GraphBuilder, outputs: Outputs, *, self: Value, groups: int) -> Rewritten:
    """The channels of several groups take turns (Zhang et al., "ShuffleNet", 2018)."""
    batch, channels, *rest = self.type.shape
    split = b.call(aten.view.default, self, (batch, groups, channels // groups, *rest))
    return (_copied(b, b.call(aten.transpose.int, split, 1, 2), outputs[0].shape),)


def _triangle(b: GraphBuilder, self: Value, diagonal: int, *, lower: bool) -> Rewritten:
    rows, columns = (_counted(b, size, self.type.device) for size in self.type.shape[-2:])
    distance = b.call(aten.sub.Tensor, columns, b.call(aten.unsqueeze.default, rows, 1))
    outside = b.call(aten.gt.Scalar if lower else aten.lt.Scalar, distance, diagonal)
    return (b.call(aten.masked_fill.Scalar, self, outside, 0),)


def _counted(b: GraphBuilder, size: int, device: torch.device) -> Value:
    type_ = TensorType((size,), torch.int64, (1,), device)
    return b.call_typed(aten.arange.default, (type_,), size, device=device)[0]


def tril(b: GraphBuilder, outputs: Outputs, *, self: Value, diagonal: int) -> Rewritten:
    return _triangle(b, self, diagonal, lower=True)


def triu(b: GraphBuilder, outputs: Outputs, *, self: Value, diagonal: int) -> Rewritten:
    return _triangle(b, self, diagonal, lower=False)


def upsample_nearest2d(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    self: Value,
    output_size: tuple[int, int],
    scales_h: float | None,
    scales_w: float | None,
) -> Rewritten:
    """Whole factors: each pixel is repeated. Others pick pixels by rounded positions, and stay with the library."""
    batch, channels, *sizes = self.type.shape
    factors = [_factor(*each) for each in zip(sizes, output_size, (scales_h, scales_w), strict=True)]
    if None in factors or self.type.numel == 0:
        return None
    (height, width), (down, across) = sizes, factors
    result = b.call(aten.unsqueeze.default, b.call(aten.unsqueeze.default, self, 3), 5)
    result = b.call(aten.expand.default, result, (batch, channels, height, down, width, across))
    return (_copied(b, result, outputs[0].shape),)


def _factor(size: int, wanted: int, scale: float | None) -> int | None:
    """How often each of `size` pixels comes, if it is equally often; asked of the op, which rounds positions."""
    if size == 0 or wanted % size:
        return None
    pixels = torch.arange(size, dtype=torch.float32)
    picked = aten.upsample_nearest1d.default(pixels.view(1, 1, size), [wanted], scale)
    factor = wanted // size
    return factor if torch.equal(picked.flatten(), pixels.repeat_interleave(factor)) else None


ROWS: Final[Mapping[str, OpRow]] = rewrites(
    {
        "constant_pad_nd.default": constant_pad_nd,
        "slice_backward.default": slice_backward,
        "select_backward.default": select_backward,
        "slice_scatter.default": slice_scatter,
        "select_scatter.default": select_scatter,
        "roll.default": roll,
        "repeat.default": repeat,
        "pixel_shuffle.default": pixel_shuffle,
        "pixel_unshuffle.default": pixel_unshuffle,
        "channel_shuffle.default": channel_shuffle,
        "tril.default": tril,
        "triu.default": triu,
        "upsample_nearest2d.default": upsample_nearest2d,
    }
)
