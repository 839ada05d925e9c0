"""What needs the package triton, which takes its time to import and exists for Linux alone: loaded at first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from dsjit.codegen.interpret import KernelRunner
from dsjit.codegen.triton.code import GpuCode, Resources
from dsjit.codegen.triton.machine import GpuMachine
from dsjit.codegen.triton.source import KernelSource
from dsjit.codegen.triton.target import TritonTarget
from dsjit.errors import MissingPackageError

__all__ = ["gpu_compiler", "gpu_machine", "triton_interpreter"]


def triton_interpreter() -> KernelRunner:
    """Runs Kernels as Triton source in Triton's interpreter. Raises MissingPackageError."""
    runner: KernelRunner = _load("interpret").interpret_kernel
    return runner


def gpu_compiler() -> Callable[[KernelSource, TritonTarget, bool], tuple[GpuCode, Resources]]:
    """Compiles Triton source for a GPU, which need not be at hand. Raises MissingPackageError."""
    compiler = _load("compiler")

    def run(source: KernelSource, target: TritonTarget, fast: bool) -> tuple[GpuCode, Resources]:
        code: GpuCode = compiler.compile_source(source, target, fast)
        return code, compiler.resources(code)

    return run


def gpu_machine(device: torch.device) -> GpuMachine:
    """The GPU `device`, which has an index; a kernel was tried out on it. Raises BackendError without a driver, or
    where that kernel went wrong, and MissingPackageError."""
    machine: GpuMachine = _load("cuda_machine").cuda_machine(device)
    _load("tryout").check_launches(machine)
    return machine


def _load(name: str) -> Any:
    try:
        return importlib.import_module(f"dsjit.codegen.triton.{name}")
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"this needs Triton, of which there is no package here ({error})") from error
