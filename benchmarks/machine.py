"""Describes the machine and the software that figures were taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.contenders import cpp_compiler

__all__ = ["Machine", "describe"]

VECTOR_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve")
"""The instruction sets, as Linux names them, that decide how fast dense arithmetic is."""


@dataclass(frozen=True, slots=True)
class Machine:
    """`flags` are those of `VECTOR_FLAGS` that the processor has; `memory` is in bytes."""

    processor: str
    flags: list[str]
    cores: int
    threads: int
    memory: int
    system: str
    python: str
    packages: dict[str, str]
    cpp_compiler: str

    def lines(self) -> list[str]:
        """A short description, a fact a line."""
        return [
            f"{self.processor}, {self.cores} cores ({' '.join(self.flags)}), {self.memory / 2**30:.0f} GiB",
            f"{self.threads} threads, {self.system}",
            f"Python {self.python}, " + ", ".join(f"{name} {version}" for name, version in self.packages.items()),
            f"C++ compiler (for torch.compile only): {self.cpp_compiler}",
        ]


def describe(threads: int) -> Machine:
    """This machine, with torch using `threads` threads."""
    information = _processor_information()
    flags = set((information.get("flags") or information.get("Features") or "").split())
    return Machine(
        processor=information.get("model name") or platform.processor() or platform.machine(),
        flags=[flag for flag in VECTOR_FLAGS if flag in flags],
        cores=os.cpu_count() or 1,
        threads=threads,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages={"torch": torch.__version__}
        | {name: importlib.metadata.version(name) for name in ("llvmlite", "transformers")},
        cpp_compiler=_compiler_version(),
    )


def _processor_information() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _compiler_version() -> str:
    compiler = cpp_compiler()
    if compiler is None:
        return "none"
    output = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    return output.splitlines()[0] if output else compiler
