"""Traced numbers as arguments of the functions of Python's `math`.

These are C functions, which read a float without asking it. Once a trace has met the module, it shows stand-ins, which
ask instead; code that has the functions by other names (`from math import sqrt`) calls the
functions themselves, which pins all numbers (`trace.numbers.leaks`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import torch

from dsjit.trace.effects.stand_in import Shown, StandIn

__all__ = ["MathCalls"]

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

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def __call__(self, *operands: Any, **options: Any) -> Any:
        listener = _CURRENT.listener
        if listener is None or options or not any(isinstance(each, float | int | torch.Tensor) for each in operands):
            return self.original(*operands, **options)
        return listener.math_call(self.original, operands)


class _Current(threading.local):
    """The listener of each thread."""

    listener: MathListener | None = None


_CURRENT: Final = _Current()
"""Which listener a thread has."""

_SHOWN: Final = Shown(vars(math), _NAMES, _MathCall)


class MathCalls:
    """The stand-ins of one trace.

    Code that is imported meanwhile must not get hold of them: `withdraw` is for good.
    """

    def __init__(self, listener: MathListener) -> None:
        self._listener = listener
        self._shown = False
        self._withdrawn = False

    def show(self) -> None:
        """From now on, calls of these functions on this thread are answered by the listener."""
        if not self._shown and not self._withdrawn:
            self._shown = True
            _CURRENT.listener = self._listener
            _SHOWN.enter()

    def withdraw(self) -> None:
        """Not any more, and not again."""
        self._withdrawn = True
        if self._shown:
            self._shown = False
            _SHOWN.leave()
            _CURRENT.listener = None

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Not for a while, in which something may be imported."""
        if not self._shown:
            yield
            return
        _SHOWN.leave()
        try:
            yield
        finally:
            _SHOWN.enter()
