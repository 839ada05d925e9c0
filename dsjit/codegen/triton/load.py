"""What needs the package triton, which takes its time to import and exists for Linux alone: loaded at first use."""

from __future__ import annotations

import importlib
from typing import Any

from dsjit.codegen.interpret import KernelRunner
from dsjit.errors import MissingPackageError

__all__ = ["triton_interpreter"]


def triton_interpreter() -> KernelRunner:
    """Runs Kernels as Triton source in Triton's interpreter. Raises MissingPackageError."""
    runner: KernelRunner = _load("interpret").interpret_kernel
    return runner


def _load(name: str) -> Any:
    try:
        return importlib.import_module(f"dsjit.codegen.triton.{name}")
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"this needs Triton, of which there is no package here ({error})") from error
