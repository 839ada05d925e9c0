"""Why a run cannot become a Graph."""

from __future__ import annotations

from dataclasses import dataclass

from dsjit.ir.graph import Source
from dsjit.trace.recording.memory import CannotTrace

__all__ = ["Untraceable", "untraceable"]


@dataclass(frozen=True, slots=True)
class Untraceable:
    """Why the run cannot become a static Graph, and where. `passing`: an equal call later may be traceable."""

    reason: str
    source: Source
    passing: bool = False


def untraceable(error: Exception, source: Source) -> Untraceable:
    """Whatever goes wrong while recording must not reach the user's function, which can go on."""
    if isinstance(error, CannotTrace):
        return Untraceable(error.reason, source)
    return Untraceable(f"recording failed ({type(error).__name__}: {error})", source, isinstance(error, MemoryError))
