"""Traced numbers as arguments of the functions of Python's `math`.

These are C functions, which read a float without asking it. While a trace runs that has handed out numbers, the module
shows stand-ins, which ask instead; code that has the functions by other names (`from math import sqrt`) calls the
functions themselves, which pins all numbers (`trace.numbers_leaks`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import torch

from dsjit.trace.stand_in import Shown, StandIn

__all__ = ["math_calls"]

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
        listener = _CURRENT.listener
        if listener is None or options or not any(isinstance(each, float | torch.Tensor) for each in operands):
            return self.original(*operands, **options)
        return listener.math_call(self.original, operands)


class _Current(threading.local):
    """The listener of each thread."""

    listener: MathListener | None = None


_CURRENT: Final = _Current()
"""Which listener a thread has."""

_SHOWN: Final = Shown(vars(math), _NAMES, _MathCall)


@contextmanager
def math_calls(listener: MathListener) -> Iterator[None]:
    """While it lasts, calls of these functions on this thread are answered by `listener`."""
    _CURRENT.listener = listener
    _SHOWN.enter()
    try:
        yield
    finally:
        _SHOWN.leave()
        _CURRENT.listener = None
