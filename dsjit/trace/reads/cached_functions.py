"""Functions with a cache (`functools.lru_cache`), as far as they turn constants into a constant or a tensor.

What such a function answers does not follow from what Python code can read: the cache may hold what was so long ago.
So while a trace runs, stand-ins take the place of these functions in the globals and closures of the code that runs,
and note each answer. A guard asks the function again, as long as the cache has lost nothing, as far as its statistics
tell: asking must not compute what eager would not compute.

A tensor that was made in the call is a key that no other call has: then the function computes, as one without a cache.
"""

from __future__ import annotations

import functools
import inspect
import threading
import types
from dataclasses import dataclass
from typing import Any, Final, Protocol

from dsjit.trace.effects.stand_in import StandIn
from dsjit.trace.reads.library import is_library_code
from dsjit.trace.reads.paths import ABSENT, Asked

__all__ = ["FILLS_A_CACHE", "CachedFunctions", "CellPlace", "GlobalPlace", "is_cached_function"]

FILLS_A_CACHE: Final = "fills the cache of a function"
"""Why a call runs eagerly in which one of these functions had to compute: it does not do so again."""


class AnswerListener(Protocol):
    """Who is told what cached functions answer on its own thread."""

    def on_answer(self, function: Any, step: Asked, answer: Any) -> None: ...

    def on_problem(self, reason: str) -> None: ...

    def is_made(self, argument: Any) -> bool:
        """Whether it is a tensor that was made in the call."""
        ...


class _Current(threading.local):
    """The listener of each thread."""

    listener: AnswerListener | None = None


_CURRENT: Final = _Current()
"""Which listener a thread has."""

_LOCK: Final = threading.Lock()
"""Held while a place is changed: several traces may want a stand-in in one place."""


def is_cached_function(value: Any) -> bool:
    """Whether `value` is what `functools.lru_cache` or `functools.cache` made of a function of the user's."""
    if type(value) is not functools._lru_cache_wrapper:
        return False
    inner = inspect.unwrap(value)
    return hasattr(inner, "__code__") and not is_library_code(inner.__code__, inner.__globals__)


class _Cached(StandIn):
    """In place of one function with a cache. users: traces that want it."""

    users = 0

    def __getattr__(self, name: str) -> Any:
        if _CURRENT.listener is not None and name.startswith("cache_"):
            _CURRENT.listener.on_problem(f"uses {name} of a function with a cache")
        return getattr(self.original, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        listener, function = _CURRENT.listener, self.original
        if listener is None or any(map(listener.is_made, (*args, *kwargs.values()))):
            return function(*args, **kwargs)
        misses = function.cache_info().misses
        answer = function(*args, **kwargs)
        now = function.cache_info()
        if now.misses != misses:
            listener.on_problem(FILLS_A_CACHE)
        else:
            arguments = (args, tuple(kwargs.items()), now.currsize, misses)
            listener.on_answer(function, Asked("cached", _ask, arguments), answer)
        return answer


def _ask(function: Any, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...], size: int, misses: int) -> Any:
    """What the cache answers; `ABSENT` when it may have lost that since it had `size` entries after so many misses."""
    now = function.cache_info()
    if now.currsize < size or now.misses < misses or (now.currsize == now.maxsize and now.misses != misses):
        return ABSENT
    try:
        return function(*args, **dict(kwargs))
    except Exception:  # eager will raise the same
        return ABSENT


@dataclass(frozen=True, slots=True)
class GlobalPlace:
    """A name in the globals of a module."""

    scope: dict[str, Any]
    name: str

    @property
    def key(self) -> tuple[int, str]:
        return id(self.scope), self.name

    def read(self) -> Any:
        return self.scope.get(self.name)

    def write(self, value: Any) -> None:
        self.scope[self.name] = value


@dataclass(frozen=True, slots=True)
class CellPlace:
    """A variable of a closure."""

    cell: types.CellType

    @property
    def key(self) -> tuple[int, str]:
        return id(self.cell), ""

    def read(self) -> Any:
        try:
            return self.cell.cell_contents
        except ValueError:  # the variable was deleted
            return None

    def write(self, value: Any) -> None:
        self.cell.cell_contents = value


class CachedFunctions:
    """The stand-ins of one trace."""

    def __init__(self, listener: AnswerListener) -> None:
        self._listener = listener
        self._places: dict[tuple[int, str], GlobalPlace | CellPlace] = {}

    def watch(self, place: GlobalPlace | CellPlace) -> None:
        """From now on, hear of calls of the function in this place."""
        if place.key in self._places:
            return
        _CURRENT.listener = self._listener
        with _LOCK:
            found = place.read()
            if is_cached_function(found):
                found = _Cached(found)
                place.write(found)
            if type(found) is not _Cached:
                return
            found.users += 1
        self._places[place.key] = place

    def leave(self) -> None:
        """Put back what nobody wants a stand-in for any more."""
        _CURRENT.listener = None
        for place in self._places.values():
            with _LOCK:
                found = place.read()
                if type(found) is _Cached:
                    found.users -= 1
                    if not found.users:
                        place.write(found.original)
        self._places.clear()
