"""Notices when the traced code seeds the default random generator, or saves and restores its state.

These are no ATen calls: `torch.manual_seed`, `torch.get_rng_state`, `torch.random.fork_rng` and their like reach the
generator through one name in `torch.random`, where a stand-in listens while the trace runs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

import torch

from dsjit.trace.effects.stand_in import StandIn

__all__ = ["GeneratorWatch"]


class _StandIn(StandIn):
    """Passes everything on to the real generator; tells the watch of its thread about the calls that a Graph must
    repeat."""

    def __init__(self, real: Any, current: _Current) -> None:
        super().__init__(real)
        self._current = current

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def get_state(self) -> torch.Tensor:
        state: torch.Tensor = self.original.get_state()
        self._current.listen("get", state)
        return state

    def set_state(self, state: torch.Tensor) -> Any:
        self._current.listen("set", state)
        return self.original.set_state(state)

    def manual_seed(self, seed: int) -> Any:
        whole = sys._getframe(1).f_globals.get("__name__") == "torch.random"  # torch.manual_seed
        self._current.listen("seed all" if whole else "seed", seed)
        return self.original.manual_seed(seed)

    def seed(self) -> int:
        self._current.listen("random", None)
        chosen: int = self.original.seed()
        return chosen


class _Current(threading.local):
    """Who listens on each thread."""

    def __init__(self) -> None:
        self.listen: Callable[[str, Any], None] = _ignore


def _ignore(what: str, value: Any) -> None:
    """Nobody listens."""


class _Register:
    """Puts the stand-in up for the first watch of the process, and takes it away with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._current = _Current()
        self._stand_in: _StandIn | None = None

    def enter(self, listen: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
        """Returns who listened on this thread before."""
        with self._lock:
            if not self._count:
                self._stand_in = _StandIn(vars(torch.random)["default_generator"], self._current)
                vars(torch.random)["default_generator"] = self._stand_in
            self._count += 1
        before, self._current.listen = self._current.listen, listen
        return before

    def leave(self, before: Callable[[str, Any], None]) -> None:
        self._current.listen = before
        with self._lock:
            self._count -= 1
            if not self._count and self._stand_in is not None:
                if vars(torch.random)["default_generator"] is self._stand_in:
                    vars(torch.random)["default_generator"] = self._stand_in.original
                self._stand_in = None


_REGISTER: Final = _Register()
"""The name that is replaced is the process's, so its bookkeeping is too."""


class GeneratorWatch:
    """Calls `listen(what, value)`, for the thread that enters: ("get" | "set", state), ("seed", number), ("seed all",
    number) for the generators of all devices, or ("random", None)."""

    def __init__(self, listen: Callable[[str, Any], None]) -> None:
        self._listen = listen

    def __enter__(self) -> GeneratorWatch:
        self._before = _REGISTER.enter(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        _REGISTER.leave(self._before)
