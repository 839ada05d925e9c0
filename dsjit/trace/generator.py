"""Notices when the traced code seeds the default random generator, or saves and restores its state.

These are no ATen calls: `torch.manual_seed`, `torch.get_rng_state`, `torch.random.fork_rng` and their like reach the
generator through one name in `torch.random`, where a stand-in listens while the trace runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

__all__ = ["GeneratorWatch"]


class _StandIn:
    """Passes everything on to the real generator; tells the watch about the calls that a Graph must repeat."""

    def __init__(self, real: Any, watch: GeneratorWatch) -> None:
        self._real = real
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_state(self) -> torch.Tensor:
        state: torch.Tensor = self._real.get_state()
        self._watch.tell("get", state)
        return state

    def set_state(self, state: torch.Tensor) -> Any:
        self._watch.tell("set", state)
        return self._real.set_state(state)

    def manual_seed(self, seed: int) -> Any:
        self._watch.tell("seed", seed)
        return self._real.manual_seed(seed)

    def seed(self) -> int:
        self._watch.tell("random", None)
        chosen: int = self._real.seed()
        return chosen


class GeneratorWatch:
    """Calls `listen(what, value)`, for this thread: ("get" | "set", state), ("seed", number) or ("random", None)."""

    def __init__(self, listen: Callable[[str, Any], None]) -> None:
        self._listen = listen
        self._thread = threading.get_ident()

    def tell(self, what: str, value: Any) -> None:
        if threading.get_ident() == self._thread:
            self._listen(what, value)

    def __enter__(self) -> GeneratorWatch:
        self._before = torch.random.default_generator
        torch.random.default_generator = _StandIn(self._before, self)  # type: ignore[assignment]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        torch.random.default_generator = self._before
