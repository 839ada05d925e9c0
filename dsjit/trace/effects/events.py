"""Events: what a call tells the outside (prints, log records, warnings), and how each is told again on a later run.

`str` of an event says what it does, for people; `source` is the line of the user's that did it (or is blamed for it).
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeAlias

from dsjit.ir.graph import Source
from dsjit.trace.reads.library import is_own_file

__all__ = ["Event", "Logged", "Printed", "Warned", "Written", "frame_above", "place_of"]


@dataclass(frozen=True, slots=True)
class Printed:
    """One call of `print`, on `file` or on the standard output of the moment. Told with the list of its values."""

    sep: str | None
    end: str | None
    flush: bool
    file: Any
    show: Callable[..., None]
    source: Source

    def __str__(self) -> str:
        return "prints"

    def tell(self, values: list[Any]) -> None:
        self.show(*values, sep=self.sep, end=self.end, file=self.file, flush=self.flush)


@dataclass(frozen=True, slots=True)
class Written:
    """Text written to `sys.stdout` or `sys.stderr` (`stream` is the name), or its flush. Told with the text."""

    stream: str
    flushes: bool
    source: Source

    def __str__(self) -> str:
        return f"flushes sys.{self.stream}" if self.flushes else f"writes to sys.{self.stream}"

    def tell(self, values: list[Any]) -> None:
        stream = getattr(sys, self.stream)
        if self.flushes:
            stream.flush()
        else:
            stream.write(*values)


@dataclass(frozen=True, slots=True)
class Logged:
    """A record that `logger` handled. Told with its message, arguments and extra attributes."""

    logger: logging.Logger
    level: int
    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"logs to {self.logger.name} ({logging.getLevelName(self.level)})"

    @property
    def source(self) -> Source:
        return Source(self.file, self.line, self.function)

    def tell(self, values: list[Any]) -> None:
        message, arguments, extra = values
        record = self.logger.makeRecord(
            self.logger.name, self.level, self.file, self.line, message, arguments, None, self.function, extra
        )
        self.logger.handle(record)


@dataclass(frozen=True, slots=True)
class Warned:
    """One call of `warnings.warn`, its place resolved. `scope` are the globals of the module that is blamed.

    above: None, or, when the blamed line is outside of the call, how many frames above its caller; the place is then
    that of the traced call, and found anew for each.

    Whether a warning is shown is decided by Python's filters and by the registry of that module, on each run as it is
    in eager code: shown once, always or never. (Where it is raised as an error, the program does not run.)
    """

    message: str | Warning
    category: type[Warning]
    file: str
    line: int
    scope: dict[str, Any]
    above: int | None = None

    def __str__(self) -> str:
        return f"warns ({self.category.__name__})"

    @property
    def source(self) -> Source:
        return Source(self.file, self.line, "")

    @property
    def module(self) -> str:
        return str(self.scope.get("__name__", "<unknown>"))

    def tell(self, values: list[Any]) -> None:
        if self.above is None:
            self.give(self.file, self.line, self.scope)
        else:
            self.give(*place_of(frame_above(sys._getframe(0), self.above + 1)))

    def give(self, file: str, line: int, scope: dict[str, Any]) -> None:
        """Warn about this place."""
        registry = scope.setdefault("__warningregistry__", {})
        module = str(scope.get("__name__", "<unknown>"))
        warnings.warn_explicit(self.message, self.category, file, line, module, registry)


def frame_above(frame: FrameType | None, levels: int) -> FrameType | None:
    """The frame so many levels above `frame`, not counting those of dsjit."""
    while frame is not None and levels:
        frame = frame.f_back
        levels -= frame is not None and not is_own_file(frame.f_code.co_filename)
    return frame


def place_of(frame: FrameType | None) -> tuple[str, int, dict[str, Any]]:
    """File, line and globals that a warning blames, as `warnings.warn` has it."""
    if frame is None:
        return "sys", 1, sys.__dict__
    return frame.f_code.co_filename, frame.f_lineno, frame.f_globals


Event: TypeAlias = Printed | Written | Logged | Warned
