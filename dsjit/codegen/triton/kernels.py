"""Kernels of GPUs by structure: equal kernels are emitted and compiled once for each device."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch

from dsjit.codegen.nest import index_bounds
from dsjit.codegen.structure import kernel_structure
from dsjit.codegen.triton.code import GpuCode
from dsjit.codegen.triton.emit import candidates, narrow_source
from dsjit.codegen.triton.launch import Driver, GpuKernel, Launch, Specialization
from dsjit.codegen.triton.source import KernelSource
from dsjit.codegen.triton.target import TritonTarget
from dsjit.codegen.triton.tuning import Run, Tuner
from dsjit.ir.graph import TensorType
from dsjit.ir.kernel import Kernel

__all__ = ["Compiler", "GpuKernelCache", "GpuLookup"]

Compiler: TypeAlias = Callable[[KernelSource, TritonTarget, bool, Sequence[bool], Sequence[bool]], GpuCode]
"""From source, target, whether multiply-adds may be contracted, which buffers are aligned, and which sizes are
multiples of 16, to code."""


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
            self._compile_ahead([(made, _usual(made, kernel)) for made, kernel in zip(found, kernels, strict=True)])
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

        ahead = partial(self._compile_ahead, [(made, _usual(made, kernel)) for made in found], refuse=False)
        return found[tuner.best(self.texts(kernel), [partial(run, made) for made in found], ahead)]

    def _compile_ahead(self, wanted: Sequence[tuple[GpuKernel, Specialization]], refuse: bool = True) -> None:
        """Compiles several at a time: Triton's compiler is single-threaded, and its assembler a process of its own.

        refuse: raise BackendError for what cannot be compiled; else it is left out.
        """
        missing = [each for each in dict.fromkeys(wanted) if each[1] not in each[0].variants]
        if len(missing) < 2:
            return
        with ThreadPoolExecutor(min(len(missing), 1 + (os.cpu_count() or 1)), "dsjit-triton") as pool:
            futures = [pool.submit(made.code, relied) for made, relied in missing]
        for (made, relied), future in zip(missing, futures, strict=True):
            if refuse or future.exception() is None:
                made.add(relied, future.result())

    def _launch(self, made: GpuKernel, buffers: Sequence[torch.Tensor]) -> Run:
        """buffers: in the order of the Kernel's params, whose names may be those of an equal Kernel."""
        table = (ctypes.c_int64 * len(buffers))(*[buffer.data_ptr() for buffer in buffers])
        slots = tuple(range(len(buffers)))
        batch = self._driver.batch((Launch.of(made, slots, (0,) * len(slots), ()),))
        return lambda: (batch(ctypes.addressof(table)), buffers)  # the buffers live as long

    def _compiled(self, source: KernelSource, fast: bool) -> GpuKernel:
        narrow = narrow_source(source, self.target)
        return GpuKernel(source, self._driver, partial(self._compile, fast), narrow)

    def _compile(self, fast: bool, source: KernelSource, relied: Specialization) -> GpuCode:
        return self._compiler(source, self.target, fast, relied.aligned, relied.divisible)


def _usual(made: GpuKernel, kernel: Kernel) -> Specialization:
    """What the code relies on for buffers that are all aligned, and sizes as they typically are."""
    _, divisible, narrow = made.facts(*[size.typical for size in kernel.sizes])
    return Specialization((True,) * len(kernel.params), divisible, narrow)
