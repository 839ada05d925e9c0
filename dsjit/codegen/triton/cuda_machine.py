"""A CUDA device at hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
import triton

from dsjit.codegen.triton.choices import Choices, choices_file
from dsjit.codegen.triton.compiler import compile_source
from dsjit.codegen.triton.cuda import CudaDriver, cuda_target
from dsjit.codegen.triton.kernels import GpuKernelCache
from dsjit.codegen.triton.machine import GpuMachine
from dsjit.codegen.triton.tuning import Run, Tuner
from dsjit.ir.graph import TensorType

__all__ = ["CudaMeter", "CudaRecorder", "cuda_machine"]

_VERSION: Final = 2
"""Of how candidates are measured: what an earlier version chose is forgotten."""

_FLUSHED_BYTES: Final = 1 << 28
"""More than any L2 cache holds."""


def cuda_machine(device: torch.device) -> GpuMachine:
    """device: with an index. Raises BackendError when there is no driver."""
    stream = partial(torch._C._cuda_getCurrentRawStream, device.index)
    driver = CudaDriver(stream, device=device.index)
    event = partial(torch.cuda.Event, enable_timing=True)
    kernels = GpuKernelCache(cuda_target(device), driver, compile_source)
    tuner = Tuner(CudaMeter(device, driver.version()), Choices(choices_file()))
    return GpuMachine(device, kernels, partial(torch.cuda.device, device), stream, event, tuner, CudaRecorder(device))


_RECORDING: Final = threading.Lock()
"""torch allows one capture at a time in the process."""


@dataclass(slots=True)
class CudaRecorder:
    """Records CUDA graphs of one device, each with memory of its own. stream: where they are recorded, once one is."""

    device: torch.device
    stream: torch.cuda.Stream | None = None

    def is_busy(self) -> bool:
        """As `GraphRecorder.is_busy`."""
        return torch.cuda.is_current_stream_capturing()

    def record(self, run: Callable[[], list[torch.Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]:
        """As `GraphRecorder.record`."""
        graph = torch.cuda.CUDAGraph()
        with _RECORDING:
            if self.stream is None:  # torch's own is of the device that was the current one when it was first wanted
                self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            # A capture that fails leaves its stream the current one. Other threads may allocate meanwhile.
            with (
                torch.cuda.stream(torch.cuda.current_stream(self.device)),
                torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
            ):
                results = run()
        return graph, results


@dataclass(frozen=True, slots=True)
class CudaMeter:
    """Measures with events of the current stream. driver: its version."""

    device: torch.device
    driver: int

    @property
    def identity(self) -> str:
        versions = (
            f"CUDA {torch.version.cuda}, driver {self.driver}, torch {torch.__version__}, triton {triton.__version__}"
        )
        return f"{torch.cuda.get_device_name(self.device)}, {versions}, tuning {_VERSION}"

    def allocate(self, type_: TensorType) -> torch.Tensor:
        # Elements may lie at one place, and torch does not fill such tensors.
        reach = 1 + sum((size - 1) * step for size, step in zip(type_.shape, type_.strides, strict=True))
        ones = torch.empty(reach if type_.numel else 0, dtype=type_.dtype, device=self.device).fill_(1)
        return ones.as_strided(type_.shape, type_.strides)

    def microseconds(self, run: Run) -> float:
        """After the L2 cache was overwritten: in a program, other steps run in between."""
        torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device=self.device).zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        return 1e3 * float(start.elapsed_time(end))
