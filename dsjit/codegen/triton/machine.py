"""A GPU at hand: what kernels are compiled for, and what runs them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from dsjit.codegen.templates.attention_backends import BACKENDS, AttentionBackend
from dsjit.codegen.triton.kernels import GpuKernelCache
from dsjit.codegen.triton.program import DeviceEvent
from dsjit.codegen.triton.replay import GraphRecorder
from dsjit.codegen.triton.tuning import Tuner

__all__ = ["GpuMachine"]


@dataclass(frozen=True, slots=True)
class GpuMachine:
    """kernels: those of the device. device_guard, current_stream, new_event: see `GpuProgram`. tuner: measures on the
    device. recorder: see `ReplayedProgram`. attention: ops of libraries that compute it there."""

    device: torch.device
    kernels: GpuKernelCache
    device_guard: Callable[[], AbstractContextManager[object]]
    current_stream: Callable[[], int]
    new_event: Callable[[], DeviceEvent]
    tuner: Tuner | None = None
    recorder: GraphRecorder | None = None
    attention: tuple[AttentionBackend, ...] = BACKENDS
