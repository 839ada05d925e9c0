"""Objects that modules show in place of the real ones while a trace runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Shown", "StandIn", "behind"]


class StandIn:
    """Stands in for `original`. Guards hold the original: the stand-in is gone when they are checked."""

    def __init__(self, original: Any) -> None:
        self.original = original


def behind(value: Any) -> Any:
    """`value`, or the original that it stands in for."""
    return value.original if type(value).__base__ is StandIn else value


class Shown:
    """Shows a `kind` of stand-in in place of the `names` of a module, as long as anybody wants it to."""

    def __init__(self, module: dict[str, Any], names: Iterable[str], kind: Callable[[Any], StandIn]) -> None:
        self._module = module
        self._names = tuple([name for name in names if name in module])
        self._kind = kind
        self._lock = threading.Lock()
        self._count = 0

    def enter(self) -> None:
        """From now on, for all threads."""
        with self._lock:
            self._count += 1
            if self._count == 1:
                self._module.update({name: self._kind(self._module[name]) for name in self._names})

    def leave(self) -> None:
        """Until the last one leaves that entered."""
        with self._lock:
            self._count -= 1
            if not self._count:
                self._module.update({name: behind(self._module[name]) for name in self._names})
