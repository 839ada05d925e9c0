"""Runs the convolution template on tensors, as a Program would."""

from __future__ import annotations

import ctypes
from dataclasses import astuple, dataclass
from functools import cache
from math import ceil
from typing import Any

import torch

from dsjit.codegen.llvm.engine import KernelCache
from dsjit.codegen.llvm.executor import KernelCall, build_sequence
from dsjit.codegen.llvm.target import Target
from dsjit.codegen.templates.convolution import ConvolutionSizes, ConvolutionTemplate
from dsjit.ops.direct_convolution import block_width


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a convolution, in the order in which torch takes them after the bias."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def torch(self, image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(image, weight, None, self.stride, self.padding, self.dilation)


@cache
def kernels(target: Target | None) -> KernelCache:
    return KernelCache(target)


def in_blocks(weight: torch.Tensor, chunk: int) -> torch.Tensor:
    """(out channels, channels, height, width) as the template reads it."""
    out, channels, height, width = weight.shape
    lanes = block_width(out)
    blocks, chunks = ceil(out / lanes), ceil(channels / chunk)
    padded = torch.zeros(blocks * lanes, chunks * chunk, height, width)
    padded[:out, :channels] = weight
    return padded.view(blocks, lanes, chunks, chunk, height, width).permute(0, 2, 4, 5, 3, 1).contiguous()


def sizes_of(image: torch.Tensor, weight: torch.Tensor, settings: Settings, chunk: int) -> ConvolutionSizes:
    out = settings.torch(image[:1].to("meta"), weight.to("meta")).shape
    batch, channels, height, width = image.shape
    pairs = (*weight.shape[2:], *settings.stride, *settings.padding, *settings.dilation)
    sizes = (batch, height, width, channels, *out[2:], weight.shape[0], *pairs, ceil(channels / chunk), chunk)
    return ConvolutionSizes(*sizes)


def convolve(
    image: torch.Tensor,
    weight: torch.Tensor,
    settings: Settings,
    chunk: int = 16,
    target: Target | None = None,
    threads: int = 1,
) -> torch.Tensor:
    """The convolution by the template; what lies around the result in memory is asserted to stay."""
    chunk = min(chunk, image.shape[1])
    sizes = sizes_of(image, weight, settings, chunk)
    template = ConvolutionTemplate(block_width(weight.shape[0]))
    (kernel,) = kernels(target).compile_kernels([template]).kernels
    shape = (sizes.batch, sizes.out_channels, sizes.out_height, sizes.out_width)
    count = sizes.batch * sizes.out_channels * sizes.out_height * sizes.out_width
    around = torch.full((count + 64,), -7.0)
    result: Any = around[32 : 32 + count].view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
    tensors = (image.contiguous(memory_format=torch.channels_last), in_blocks(weight, chunk), result)
    table = (ctypes.c_int64 * 4)(*(tensor.data_ptr() for tensor in tensors), 0)
    call = KernelCall(kernel, (0, 1, 2), sizes=astuple(sizes), zero=3)
    build_sequence([call]).run(ctypes.addressof(table), threads)
    assert torch.equal(around[:32], torch.full((32,), -7.0))
    assert torch.equal(around[32 + count :], torch.full((32,), -7.0))
    return result
