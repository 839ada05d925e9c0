"""Small memory-bound programs: a layer, a pointwise chain, a normalised softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.workloads.workload import Arguments, seeded

__all__ = [
    "CHAIN_SHAPES",
    "LINEAR_ROWS",
    "NORM_SHAPES",
    "chain",
    "chain_inputs",
    "linear_inputs",
    "linear_relu",
    "norm_inputs",
    "norm_softmax",
]

LINEAR_ROWS = (128, 17, 384)
CHAIN_SHAPES = ((4 * 1024 * 1024,), (1000, 1003), (37,))
NORM_SHAPES = ((4096, 1024), (513, 1024), (3, 5, 1024))


def linear_relu() -> nn.Module:
    """(rows, 768) -> (rows, 3072)"""
    return nn.Sequential(nn.Linear(768, 3072), nn.ReLU())


def linear_inputs(shape_index: int) -> Arguments:
    return (seeded(LINEAR_ROWS[shape_index], 768),)


def chain(x: Tensor, y: Tensor) -> Tensor:
    """`sigmoid(x) * tanh(y) + x -> gelu -> * y + exp().clamp -> sqrt -> abs`, eleven pointwise ops."""
    h = F.gelu(torch.sigmoid(x) * torch.tanh(y) + x)
    return torch.abs(torch.sqrt(h * y + torch.exp(h).clamp(max=10.0)))


def chain_inputs(shape_index: int) -> Arguments:
    """Uniform on [-2, 2): the square root's argument stays above 0.6, so that its error is no matter of chance."""
    shape = CHAIN_SHAPES[shape_index]
    return (torch.rand(shape) * 4 - 2, torch.rand(shape) * 4 - 2)


class NormSoftmax(nn.Module):
    """Layer norm, then a softmax of the scaled rows: (..., width) -> (..., width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scale = width**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.norm(x) * self.scale, dim=-1)


def norm_softmax() -> NormSoftmax:
    model = NormSoftmax(1024)
    nn.init.uniform_(model.norm.weight, 0.5, 1.5)
    nn.init.normal_(model.norm.bias, std=0.1)
    return model


def norm_inputs(shape_index: int) -> Arguments:
    return (seeded(*NORM_SHAPES[shape_index]),)
