"""What passes and fusion are told of the machine that kernels are for. They are told nothing of who emits them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from dsjit.fusion.limits import Limits
from dsjit.passes.pipeline import GPU_PASSES, PASSES, Pass

__all__ = ["CPU_TARGET", "Target", "gpu_target"]


@dataclass(frozen=True, slots=True)
class Target:
    """device: whose tensors kernels take. passes: what Graphs go through before fusion. limits: of fusion.
    native: whether matrix products and templates are steps beside kernels."""

    device: torch.device
    passes: tuple[Pass, ...]
    limits: Limits
    native: bool


CPU_TARGET: Final = Target(torch.device("cpu"), PASSES, Limits(), native=True)


def gpu_target(device: torch.device) -> Target:
    """device: where the tensors of the Graph are; the CPU when it stands for the GPU that is compiled for."""
    return Target(device, GPU_PASSES, Limits(rows=64, row_elements=16384), native=False)
