"""Records the warnings that traced code gives, so that each run of its Program gives them again.

Whether a warning is shown is decided by Python's filters and by the registry of the module that warned, on each run
as it is in eager code: shown once, always, never, or raised as an error.
"""

from __future__ import annotations

import sys
import threading
import warnings
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from dsjit.trace.stand_in import StandIn

__all__ = ["Warned", "WarningWatch"]


@dataclass(frozen=True, slots=True)
class Warned:
    """One call of `warnings.warn`, its place resolved. `scope` are the globals of the module that is blamed."""

    message: str | Warning
    category: type[Warning]
    file: str
    line: int
    scope: dict[str, Any]

    def again(self) -> None:
        """Warn as the traced code did."""
        registry = self.scope.setdefault("__warningregistry__", {})
        module = str(self.scope.get("__name__", "<unknown>"))
        warnings.warn_explicit(self.message, self.category, self.file, self.line, module, registry)


class _StandIn(StandIn):
    """In place of `warnings.warn`."""

    def __init__(self, original: Any, watch: WarningWatch) -> None:
        super().__init__(original)
        self._watch = watch

    def __call__(self, message: Any, category: Any = None, stacklevel: int = 1, *args: Any, **kwargs: Any) -> None:
        if not self._watch.is_own_thread() or args or kwargs:
            self.original(message, category, stacklevel + 1, *args, **kwargs)
            return
        chosen = type(message) if isinstance(message, Warning) else (category or UserWarning)
        found = Warned(message, chosen, *_place(sys._getframe(1), stacklevel))
        self._watch.warned.append(found)
        found.again()


class WarningWatch:
    """While it is active, `warnings.warn` on this thread also appends to `warned`."""

    def __init__(self) -> None:
        self.warned: list[Warned] = []
        self._thread = threading.get_ident()

    def is_own_thread(self) -> bool:
        """Whether the caller is the traced code."""
        return threading.get_ident() == self._thread

    def __enter__(self) -> WarningWatch:
        self._before = warnings.warn
        warnings.warn = _StandIn(self._before, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        warnings.warn = self._before


def _place(frame: FrameType, stacklevel: int) -> tuple[str, int, dict[str, Any]]:
    """The frame that a warning with this stacklevel blames, as `warnings.warn` finds it; `frame` made the call."""
    blamed: FrameType | None = frame
    for _ in range(stacklevel - 1):
        blamed = blamed.f_back if blamed is not None else None
    if blamed is None:
        return "sys", 1, sys.__dict__
    return blamed.f_code.co_filename, blamed.f_lineno, blamed.f_globals
