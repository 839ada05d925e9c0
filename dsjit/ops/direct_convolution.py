"""A convolution of channels-last images by a weight in blocks of output channels: the op that has a template."""

from __future__ import annotations

import torch

__all__ = ["block_width", "direct_convolution"]

aten = torch.ops.aten

_WIDTHS = (64, 48, 32, 16)


def block_width(out_channels: int) -> int:
    """How many output channels one block of the weight should have: whole registers, few of them for nothing."""
    return min(_WIDTHS, key=lambda width: (-(-out_channels // width) * width, -width))


def direct_convolution(
    image: torch.Tensor,
    weight: torch.Tensor,
    out_channels: int,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> torch.Tensor:
    """What the template computes, float32, one group.

    image: (batch, channels, height, width), channels last in memory.
    weight: (blocks, chunks, window height, window width, chunk, width), contiguous: for each `width` output channels,
        for each `chunk` input channels. After `out_channels` and after the channels of the image, it holds zeros.
    Returns (batch, out_channels, output height, output width), channels last.
    """
    blocks, chunks, height, width, chunk, lanes = weight.shape
    whole = weight.permute(0, 5, 1, 4, 2, 3).reshape(blocks * lanes, chunks * chunk, height, width)
    whole = whole[:out_channels, : image.shape[1]]
    result = aten.convolution.default(image, whole, None, stride, padding, dilation, False, (0, 0), 1)
    return result.contiguous(memory_format=torch.channels_last)
