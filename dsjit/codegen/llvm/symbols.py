"""Functions of the libraries that torch has already loaded: Sleef, BLAS, the OpenMP runtime, libm."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Final

import torch

__all__ = ["native_symbol", "sleef_symbols"]

_LIBRARY_NAMES: Final[tuple[str, ...]] = ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll")

_SLEEF_ACCURACY: Final[dict[str, str]] = {
    "acos": "_u10",
    "acosh": "_u10",
    "asin": "_u10",
    "asinh": "_u10",
    "atan": "_u10",
    "atan2": "_u10",
    "atanh": "_u10",
    "cos": "_u10",
    "cosh": "_u10",
    "erf": "_u10",
    "erfc": "_u15",
    "exp": "_u10",
    "exp2": "_u10",
    "expm1": "_u10",
    "fmod": "",
    "hypot": "_u05",
    "lgamma": "_u10",
    "log": "_u10",
    "log10": "_u10",
    "log1p": "_u10",
    "log2": "_u10",
    "nextafter": "",
    "pow": "_u10",
    "sin": "_u10",
    "sinh": "_u10",
    "tan": "_u10",
    "tanh": "_u10",
}
"""The suffix of the most accurate variant: its bound in tenths of a ulp."""

_SLEEF_WIDTHS: Final[tuple[str, ...]] = ("f16", "f8", "f4", "d8", "d4", "d2")


@cache
def _torch_library() -> ctypes.CDLL:
    """libtorch_cpu, as loaded by torch; the process itself where there is no such file."""
    folder = Path(torch.__file__).parent / "lib"
    for name in _LIBRARY_NAMES:
        if (folder / name).exists():
            return ctypes.CDLL(str(folder / name))
    return ctypes.CDLL(None)


@cache
def native_symbol(name: str) -> int | None:
    """The address of a C function of libtorch_cpu or of a library that it depends on; None where there is none.

    The dynamic linker searches a library's dependencies too. So this finds `GOMP_parallel` in the very OpenMP
    runtime whose threads torch uses, whatever that file is called.
    """
    try:
        function = getattr(_torch_library(), name)
    except AttributeError:
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


@cache
def sleef_symbols() -> frozenset[str]:
    """The names of the Sleef functions that torch exports on this machine (`Sleef_sinf16_u10`, ...)."""
    names = (
        f"Sleef_{function}{width}{accuracy}"
        for function, accuracy in _SLEEF_ACCURACY.items()
        for width in _SLEEF_WIDTHS
    )
    return frozenset(name for name in names if native_symbol(name) is not None)
