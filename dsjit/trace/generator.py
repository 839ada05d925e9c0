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

from dsjit.trace.stand_in import StandIn

__all__ = ["GeneratorWatch"]


class _StandIn(StandIn):
    """Passes everything on to the real generator; tells the watch about the calls that a Graph must repeat."""

    def __init__(self, real: Any, watch: GeneratorWatch) -> None:
        super().__init__(real)
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def get_state(self) -> torch.Tensor:
        state: torch.Tensor = self.original.get_state()
        self._watch.tell("get", state)
        return state

    def set_state(self, state: torch.Tensor) -> Any:
        self._watch.tell("set", state)
        return self.original.set_state(state)

    def manual_seed(self, seed: int) -> Any:
        self._watch.tell("seed", seed)
        return self.original.manual_seed(seed)

    def seed(self) -> int:
        self._watch.tell("random", None)
        chosen: int = self.original.seed()
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
        self._before = vars(torch.random)["default_generator"]
        vars(torch.random)["default_generator"] = _StandIn(self._before, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        vars(torch.random)["default_generator"] = self._before
