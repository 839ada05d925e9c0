"""What a process makes once, on first use, however many threads want it first."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["once"]

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")


def once(make: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """`functools.cache` for what must not be made twice: there, threads that come together each make their own, and
    all but one of these are dropped later on. An exception is not remembered."""
    cached, lock = functools.cache(make), threading.RLock()

    @functools.wraps(make)
    def made(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        with lock:
            return cached(*args, **kwargs)  # type: ignore[arg-type]

    return made
