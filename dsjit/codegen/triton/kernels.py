"""Kernels of GPUs by structure: equal kernels are emitted and compiled once for each device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from dsjit.codegen.structure import kernel_structure
from dsjit.codegen.triton.code import GpuCode
from dsjit.codegen.triton.emitter import emit_kernel
from dsjit.codegen.triton.launch import Driver, GpuKernel
from dsjit.codegen.triton.source import KernelSource
from dsjit.codegen.triton.target import TritonTarget
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
        self._lock = threading.Lock()
        self._known: dict[Hashable, GpuKernel] = {}

    def compile_kernels(self, kernels: Sequence[Kernel], fast: bool) -> GpuLookup:
        """fast: multiply-adds may be contracted. Raises BackendError when what is new cannot be compiled."""
        texts: list[str] = []
        found: list[GpuKernel] = []
        with self._lock:
            for kernel in kernels:
                key = (fast, kernel_structure(kernel))
                if key not in self._known:
                    self._known[key] = self._made(kernel, fast)
                    texts.append(self._known[key].source.text)
                found.append(self._known[key])
        return GpuLookup(tuple(found), len(texts), len(kernels) - len(texts), "\n\n".join(texts))

    def _made(self, kernel: Kernel, fast: bool) -> GpuKernel:
        source = emit_kernel(kernel, self.target.processors)
        return GpuKernel(source, self._driver, partial(self._compile, source, fast))

    def _compile(self, source: KernelSource, fast: bool, aligned: tuple[bool, ...]) -> GpuCode:
        return self._compiler(source, self.target, fast, aligned)
