"""Traced numbers as arguments of the functions of Python's `math`.

These are C functions, which read a float without asking it. While a trace runs that has handed out numbers, the module
shows stand-ins, which ask instead; code that has the functions by other names (`from math import sqrt`) calls the
functions themselves, which pins all numbers (`trace.numbers_leaks`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

import torch

from dsjit.trace.stand_in import StandIn

__all__ = ["MATH"]

_NAMES: Final = (
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "copysign", "cos", "cosh", "erf", "erfc", "exp",
    "exp2", "expm1", "fabs", "fmod", "gamma", "hypot", "isfinite", "isinf", "isnan", "lgamma", "log", "log10", "log1p",
    "log2", "pow", "sin", "sinh", "sqrt", "tan", "tanh",
)  # fmt: skip
"""Functions of one or several floats that return a float or a truth."""


class MathListener(Protocol):
    """Who answers calls of these functions on its own thread."""

    def math_call(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> Any: ...


class _MathCall(StandIn):
    """In place of one function of `math`."""

    def __call__(self, *operands: Any, **options: Any) -> Any:
        listener = MATH.listener()
        if listener is None or options or not any(isinstance(each, float | torch.Tensor) for each in operands):
            return self.original(*operands, **options)
        return listener.math_call(self.original, operands)


class _Current(threading.local):
    """The listener of each thread."""

    listener: MathListener | None = None


class _Register:
    """Installs the stand-ins with the first listener of the process, and takes them away with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._current = _Current()

    def enter(self, listener: MathListener) -> None:
        self._current.listener = listener
        with self._lock:
            self._count += 1
            if self._count == 1:
                vars(math).update({name: _MathCall(vars(math)[name]) for name in _NAMES if name in vars(math)})

    def leave(self) -> None:
        self._current.listener = None
        with self._lock:
            self._count -= 1
            if not self._count:
                for name in _NAMES:
                    found = vars(math).get(name)
                    if isinstance(found, _MathCall):
                        vars(math)[name] = found.original

    def listener(self) -> MathListener | None:
        """That of the calling thread."""
        return self._current.listener


MATH: Final = _Register()
"""What is replaced is process-wide, so its bookkeeping is too."""
