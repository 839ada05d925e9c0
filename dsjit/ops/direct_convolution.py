"""A convolution of channels-last images by a weight in blocks of channels: the op that has a template."""

from __future__ import annotations

from typing import Final

import torch

__all__ = ["block_width", "direct_convolution"]

aten = torch.ops.aten

_WIDTHS: Final = {64: 1.0, 48: 1.0, 32: 1.25, 16: 2.0}
"""Widths of a block, multiples of the lanes of every vector register, and what one channel costs in such a block
(measured with AVX-512): each element of the image that is loaded serves a whole width."""


def block_width(out_channels: int) -> int:
    """How many output channels one block of the weight should have: wide blocks, with few zeros in the last one."""
    return min(_WIDTHS, key=lambda width: -(-out_channels // width) * width * _WIDTHS[width])


def direct_convolution(
    image: torch.Tensor,
    weight: torch.Tensor,
    out_channels: int,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> torch.Tensor:
    """`aten.convolution` of one group without a bias, whose sums are sums over chunks of input channels.

    image: (batch, channels, height, width), channels last in memory.
    weight: (blocks, chunks, window height, window width, chunk, width), contiguous: for each `width` output channels,
        for each `chunk` input channels. After `out_channels` and after the channels of the image, it holds zeros.
    Returns (batch, out_channels, output height, output width), channels last.
    """
    blocks, _, height, width, _, lanes = weight.shape
    result: torch.Tensor | None = None
    start = 0
    for part in weight.unbind(1):
        channels = image[:, start : start + part.shape[3]]
        start += part.shape[3]
        whole = part.permute(0, 4, 3, 1, 2).reshape(blocks * lanes, part.shape[3], height, width)
        whole = whole[:out_channels, : channels.shape[1]]
        settings = (stride, padding, dilation, False, (0, 0), 1)
        sums = aten.convolution.default(channels.contiguous(), whole.contiguous(), None, *settings)
        result = sums if result is None else result + sums
    assert result is not None
    return result.contiguous(memory_format=torch.channels_last)
