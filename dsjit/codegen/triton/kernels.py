"""Kernels of GPUs by structure: equal kernels are emitted and compiled once for each device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeAlias

import torch

from dsjit.codegen.nest import index_bounds
from dsjit.codegen.structure import kernel_structure
from dsjit.codegen.triton.code import GpuCode
from dsjit.codegen.triton.emit import candidates
from dsjit.codegen.triton.launch import Driver, GpuKernel
from dsjit.codegen.triton.source import KernelSource
from dsjit.codegen.triton.target import TritonTarget
from dsjit.codegen.triton.tuning import Run, Tuner
from dsjit.ir.graph import TensorType
from dsjit.ir.kernel import Kernel

__all__ = ["Compiler", "GpuKernelCache", "GpuLookup"]

Compiler: TypeAlias = Callable[[KernelSource, TritonTarget, bool, Sequence[bool]], GpuCode]
"""From source, target, whether multiply-adds may be contracted, and which buffers are aligned, to code."""


@dataclass(frozen=True, slots=True)
class GpuLookup:
    """What `GpuKernelCache.compile_kernels` did. kernels: in the order asked for. text: of what was generated now."""

    kernels: tuple[GpuKernel, ...]
    generated: int
    reused: int
    text: str


class GpuKernelCache:
    """The kernels of one device. Thread-safe."""

    def __init__(self, target: TritonTarget, driver: Driver, compiler: Compiler) -> None:
        self.target = target
        self._driver = driver
        self._compiler = compiler
        self._lock = threading.RLock()
        self._known: dict[Hashable, GpuKernel] = {}
        self._texts: dict[Hashable, tuple[str, ...]] = {}

    def compile_kernels(self, kernels: Sequence[Kernel], fast: bool, tuner: Tuner | None = None) -> GpuLookup:
        """fast: multiply-adds may be contracted. tuner: measures where there are several candidates; without it, the
        cost model's first one is taken. Raises BackendError when what is new cannot be compiled."""
        texts: list[str] = []
        found: list[GpuKernel] = []
        with self._lock:
            for kernel in kernels:
                made, is_new = self._find(kernel, fast, tuner)
                if is_new:
                    texts.append(made.source.text)
                found.append(made)
        return GpuLookup(tuple(found), len(texts), len(kernels) - len(texts), "\n\n".join(texts))

    def texts(self, kernel: Kernel) -> tuple[str, ...]:
        """What tells all the candidates for a Kernel; the same for Kernels that differ in names and lines alone."""
        key = kernel_structure(kernel)
        with self._lock:
            if key not in self._texts:
                self._texts[key] = tuple(
                    [f"{source.schedule.warps} {source.schedule.stages} {source.constants} {source.text}"
                     for source in candidates(kernel, self.target)]
                )  # fmt: skip
            return self._texts[key]

    def trial(self, kernel: Kernel, fast: bool, buffers: Mapping[str, torch.Tensor], tuner: Tuner | None = None) -> Run:
        """Launches the Kernel on these buffers, by the names of its params. Raises BackendError."""
        with self._lock:
            made, _ = self._find(kernel, fast, tuner)
        return self._launch(made, [buffers[param.name] for param in kernel.params])

    def _find(self, kernel: Kernel, fast: bool, tuner: Tuner | None) -> tuple[GpuKernel, bool]:
        key = (fast, tuner is not None, kernel_structure(kernel))
        is_new = key not in self._known
        if is_new:
            self._known[key] = self._made(kernel, fast, tuner)
        return self._known[key], is_new

    def _made(self, kernel: Kernel, fast: bool, tuner: Tuner | None) -> GpuKernel:
        found = [self._compiled(source, fast) for source in candidates(kernel, self.target)]
        if tuner is None or len(found) == 1:
            return found[0]
        types = [
            TensorType((high + 1,), param.dtype, (1,), torch.device("cpu"))
            for param, (_, high) in zip(kernel.params, index_bounds(kernel), strict=True)
        ]
        buffers: list[torch.Tensor] = []

        def run(made: GpuKernel) -> Run:
            if not buffers:
                buffers.extend(map(tuner.meter.allocate, types))
            return self._launch(made, buffers)

        def compile_all() -> None:
            # Side by side, as most of it is the assembler's time. What cannot be compiled says so when it is wanted.
            with ThreadPoolExecutor(len(found)) as pool:
                for made in found:
                    pool.submit(made.compile, (True,) * len(types))

        return found[tuner.best(self.texts(kernel), [partial(run, made) for made in found], compile_all)]

    def _launch(self, made: GpuKernel, buffers: Sequence[torch.Tensor]) -> Run:
        """buffers: in the order of the Kernel's params, whose names may be those of an equal Kernel."""
        source = made.source
        addresses = tuple([buffer.data_ptr() for buffer in buffers])
        variant = made.variant(tuple([address % 16 == 0 for address in addresses]))
        queue = self._driver.prepare(variant.function, source.schedule.program_count({}), variant.code)
        return lambda: (queue(addresses), buffers)  # the buffers live as long

    def _compiled(self, source: KernelSource, fast: bool) -> GpuKernel:
        return GpuKernel(source, self._driver, cache(partial(self._compile, source, fast)))

    def _compile(self, source: KernelSource, fast: bool, aligned: tuple[bool, ...]) -> GpuCode:
        return self._compiler(source, self.target, fast, aligned)
