"""What Triton kernels are compiled for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from dsjit.errors import OptionError

__all__ = ["KNOWN_TARGETS", "TritonTarget"]

KNOWN_TARGETS: Final[tuple[str, ...]] = ("cuda:sm_80", "cuda:sm_90", "cuda:sm_100", "hip:gfx942")
"""The GPUs that the tests compile for."""

_CUDA: Final = re.compile(r"cuda:sm_(\d{2,3})")
_HIP: Final = re.compile(r"hip:(gfx9\w+)")


_SHARED_BYTES: Final[dict[int | str, int]] = {
    80: 163 * 1024, 86: 99 * 1024, 87: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 103: 227 * 1024,
    120: 99 * 1024,
}  # fmt: skip
_LEAST_SHARED_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class TritonTarget:
    """A GPU. backend, arch, warp_size: as `triton.backends.compiler.GPUTarget` takes them.

    processors: how many programs should run side by side, at least, for all of the GPU to have work.
    """

    backend: str
    arch: int | str
    warp_size: int
    processors: int = 132

    @staticmethod
    def parse(text: str) -> TritonTarget:
        """The target of a name such as `cuda:sm_90` or `hip:gfx942`. Raises OptionError."""
        if match := _CUDA.fullmatch(text):
            return TritonTarget("cuda", int(match[1]), 32)
        if match := _HIP.fullmatch(text):
            return TritonTarget("hip", match[1], 64)
        raise OptionError(
            f"there is no target {text!r}; use cuda:sm_<number> or hip:gfx9<number>, as in {KNOWN_TARGETS}"
        )

    @property
    def shared_bytes(self) -> int:
        """Of shared memory that one program may have (CUDA C++ Programming Guide, table of compute capabilities; for
        AMD's, the local data share)."""
        return _SHARED_BYTES.get(self.arch, _LEAST_SHARED_BYTES)

    def __str__(self) -> str:
        return f"cuda:sm_{self.arch}" if self.backend == "cuda" else f"{self.backend}:{self.arch}"
