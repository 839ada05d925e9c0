"""Deliberate miscompiles: each breaks the compiler at one place, and `dsjit.verify` must notice and say where.

A miscompile names a program whose answer it makes wrong. In the source of the program, the line that is to be blamed
ends with the comment `# here`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import torch

import dsjit
from dsjit.verification.report import Verification

__all__ = ["SECONDS", "Miscompile", "Outcome", "judge"]

SECONDS: Final = 60
"""In which the blame must be found."""

Breaks = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Miscompile:
    """what: the mistake. breaks: makes it, as a context. program: whose answer is wrong then. calls: its arguments,
    call by call (None: the inputs that `program` is given, twice). ops: names of ops, one of which must be blamed."""

    name: str
    what: str
    breaks: Breaks
    program: Callable[..., Any]
    ops: tuple[str, ...]
    calls: Callable[[], Sequence[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How `dsjit.verify` did. right: the program is well compiled when nothing is broken."""

    miscompile: Miscompile
    report: Verification
    seconds: float

    @property
    def caught(self) -> bool:
        return not self.report.ok

    @property
    def op_found(self) -> bool:
        blame = self.report.blame
        return blame is not None and any(op in blame.op for op in self.miscompile.ops)

    @property
    def line_found(self) -> bool:
        blame = self.report.blame
        return blame is not None and blame.line == line_of(self.miscompile.program)

    @property
    def localised(self) -> bool:
        return self.op_found and self.line_found and self.seconds < SECONDS


def judge(miscompile: Miscompile) -> Outcome:
    """Break the compiler, and verify the program."""
    torch.manual_seed(0)
    calls = [(args, {}) for args in miscompile.calls()]
    program = miscompile.program
    with torch.no_grad(), miscompile.breaks():
        start = time.perf_counter()
        report = dsjit.verify_calls(program() if isinstance(program, type) else program, calls)
        return Outcome(miscompile, report, time.perf_counter() - start)


def line_of(program: Callable[..., Any]) -> int:
    """The number of the line that ends with `# here`."""
    lines, start = inspect.getsourcelines(program)
    (found,) = [number for number, line in enumerate(lines) if line.rstrip().endswith("# here")]
    return start + found
