"""What the host takes to launch a kernel on a GPU: with the driver's own function, or with one that does nothing."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from dsjit.codegen.llvm.engine import CompiledModule, compile_module
from dsjit.codegen.llvm.executor import KernelCall
from dsjit.codegen.llvm.target import host_target
from dsjit.codegen.triton.code import GpuCode
from dsjit.codegen.triton.cuda import CudaDriver
from dsjit.codegen.triton.kernels import GpuKernelCache
from dsjit.codegen.triton.launch import build_launches
from dsjit.codegen.triton.source import KernelSource
from dsjit.codegen.triton.target import TritonTarget
from dsjit.ir.kernel import Apply, Axis, Block, Index, Kernel, Load, Param, Store

__all__ = ["launch_us", "own_launch_us"]

ROW: Final = 100
"""Launches of one program, one after the other."""

ROUNDS: Final = 200
ELEMENTS: Final = 1024


def launch_us(kernels: GpuKernelCache, device: torch.device) -> float:
    """Host microseconds of each of many launches in a row: the median of some rounds."""
    x, y = (torch.ones(ELEMENTS, device=device) for _ in range(2))
    (made,) = kernels.compile_kernels([_doubled()], False).kernels
    sequence = build_launches([KernelCall(made, (0, 1))] * ROW)
    table = (ctypes.c_int64 * 2)(x.data_ptr(), y.data_ptr())
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        sequence.run(ctypes.addressof(table), 1)
        times.append(time.perf_counter() - start)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return 1e6 * statistics.median(times) / ROW


def own_launch_us() -> float:
    """The same without a GPU, and without what the driver takes: its function returns at once."""
    driver = CudaDriver(lambda: 0, _Library())
    return launch_us(GpuKernelCache(TritonTarget.parse("cuda:sm_90"), driver, _no_code), torch.device("cpu"))


def _doubled() -> Kernel:
    body = (
        Load("a", "x", Index(0, (("i", 1),)), torch.float32),
        Apply("b", "add", ("a", "a"), torch.float32),
        Store("y", Index(0, (("i", 1),)), "b"),
    )
    params = (Param("x", torch.float32, "read"), Param("y", torch.float32, "write"))
    return Kernel("doubled", params, (), (Block((Axis("i", ELEMENTS),), body),), "i")


def _no_code(
    source: KernelSource, target: TritonTarget, fast: bool, aligned: Sequence[bool], divisible: Sequence[bool]
) -> GpuCode:
    return GpuCode(source, target, source.name, "", b"", 0, 128, len(source.params) + 2)


@dataclass
class _Library:
    """Stands for CUDA's driver."""

    module: CompiledModule = field(
        default_factory=lambda: compile_module(
            "define i32 @launch(ptr %f, i32 %a, i32 %b, i32 %c, i32 %d, i32 %e, i32 %g, i32 %s, ptr %t, ptr %p, ptr %x)"
            " {\n  ret i32 0\n}\n",
            host_target(),
        )
    )

    @property
    def cuLaunchKernel(self) -> Any:
        return ctypes.c_void_p(self.module.address("launch"))

    def cuModuleLoadData(self, module: Any, image: bytes) -> int:
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        return 0
