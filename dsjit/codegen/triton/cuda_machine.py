"""A CUDA device at hand."""

from __future__ import annotations

from functools import partial

import torch

from dsjit.codegen.triton.compiler import compile_source
from dsjit.codegen.triton.cuda import CudaDriver, cuda_target
from dsjit.codegen.triton.kernels import GpuKernelCache
from dsjit.codegen.triton.machine import GpuMachine

__all__ = ["cuda_machine"]


def cuda_machine(device: torch.device) -> GpuMachine:
    """device: with an index. Raises BackendError when there is no driver."""
    stream = partial(torch._C._cuda_getCurrentRawStream, device.index)
    event = partial(torch.cuda.Event, enable_timing=True)
    kernels = GpuKernelCache(cuda_target(device), CudaDriver(stream), compile_source)
    return GpuMachine(device, kernels, partial(torch.cuda.device, device), stream, event)
