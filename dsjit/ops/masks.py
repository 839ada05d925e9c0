"""Masks as ops of their own: drawn as booleans, and kept as one bit for each element."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["draw_mask", "pack_mask", "unpack_mask"]


def draw_mask(shape: Sequence[int], probability: float) -> torch.Tensor:
    """bool[shape], row-major on the CPU, each element True with this probability: what `bernoulli_` gives there for any
    dtype, with the default generator, which it leaves in the same state."""
    return torch.empty(shape, dtype=torch.bool).bernoulli_(probability)


def pack_mask(mask: torch.Tensor) -> torch.Tensor:
    """uint8[ceil(numel / 8)]: element i of the mask, a bool tensor in row-major order, is bit i % 8 of byte i // 8."""
    bits = mask.reshape(-1).to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).reshape(-1, 8)
    return (bits << _places(mask.device)).sum(1, dtype=torch.uint8)


def unpack_mask(bits: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """bool[shape], row-major: what `pack_mask` made these bits of."""
    count = torch.Size(shape).numel()
    return ((bits.unsqueeze(1) >> _places(bits.device)) & 1).bool().reshape(-1)[:count].reshape(shape)


def _places(device: torch.device) -> torch.Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
