"""Objects that modules show in place of the real ones while a trace runs."""

from __future__ import annotations

from typing import Any

__all__ = ["StandIn", "behind"]


class StandIn:
    """Stands in for `original`. Guards hold the original: the stand-in is gone when they are checked."""

    def __init__(self, original: Any) -> None:
        self.original = original


def behind(value: Any) -> Any:
    """`value`, or the original that it stands in for."""
    return value.original if type(value).__base__ is StandIn else value
