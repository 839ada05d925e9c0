"""What machine code is emitted for: triple, CPU features, vector width, and which external functions exist there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import llvmlite.binding as llvm

from dsjit.codegen.llvm.symbols import sleef_symbols

__all__ = ["AARCH64_NEON", "X86_64_AVX2", "X86_64_AVX512", "X86_64_SSE2", "Target", "host_target"]


@dataclass(frozen=True, slots=True)
class Target:
    """A machine to emit for.

    triple, cpu, features: as LLVM's target machines take them (`features` is `+avx2,+fma,...`).
    vector_bytes: width of the widest vector register to use.
    symbols: external functions that generated code may call there, beyond libm's.
    cores: processors that may share the work of a kernel.
    """

    triple: str
    cpu: str
    features: str
    vector_bytes: int
    symbols: frozenset[str] = frozenset()
    cores: int = 8

    @property
    def lanes(self) -> int:
        """Lanes of float32 in one register; every vector of a kernel has this many lanes, whatever its dtype."""
        return self.vector_bytes // 4

    @property
    def vector_registers(self) -> int:
        return 32 if self.vector_bytes == 64 or self.is_aarch64 else 16

    @property
    def is_x86(self) -> bool:
        return self.triple.startswith("x86_64")

    @property
    def is_aarch64(self) -> bool:
        return self.triple.startswith(("aarch64", "arm64"))

    def has_feature(self, name: str) -> bool:
        """Whether `+name` is among the features."""
        return f"+{name}" in self.features.split(",")

    @property
    def has_fma(self) -> bool:
        """Whether `llvm.fma` on float32 and float64 is an instruction rather than a call to libm."""
        return self.is_aarch64 or self.has_feature("fma") or self.has_feature("avx512f")

    def has_symbol(self, name: str) -> bool:
        return name in self.symbols


@cache
def host_target() -> Target:
    """The machine that this process runs on.

    The CPU's name is not asked for, as virtual machines lie about it; its feature flags decide. The generic CPU also
    keeps LLVM from preferring 256-bit vectors on x86.
    """
    triple = llvm.get_process_triple()
    flags = llvm.get_host_cpu_features()
    architecture = triple.split("-")[0]
    features = ",".join(f"+{name}" for name in sorted(flags) if flags[name] and name != "prefer-256-bit")
    return Target(
        triple,
        "x86-64" if architecture == "x86_64" else "generic",
        features,
        _vector_bytes(architecture, flags),
        sleef_symbols(),
        os.cpu_count() or 1,
    )


def _vector_bytes(architecture: str, flags: Mapping[str, bool]) -> int:
    if architecture != "x86_64":
        return 16
    if all(flags.get(name, False) for name in ("avx512f", "avx512vl", "avx512bw", "avx512dq")):
        return 64
    return 32 if flags.get("avx2", False) else 16


X86_64_AVX512: Final = Target(
    "x86_64-unknown-linux-gnu",
    "x86-64",
    "+avx,+avx2,+avx512bw,+avx512cd,+avx512dq,+avx512f,+avx512vl,+bmi,+bmi2,+f16c,+fma,+lzcnt,+popcnt,+sse4.2",
    64,
)
X86_64_AVX2: Final = Target(
    "x86_64-unknown-linux-gnu", "x86-64", "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+popcnt,+sse4.2", 32
)
X86_64_SSE2: Final = Target("x86_64-unknown-linux-gnu", "x86-64", "", 16)
AARCH64_NEON: Final = Target("aarch64-unknown-linux-gnu", "generic", "+neon,+fp-armv8", 16)
