"""Optimisation fuel: the first `limit` rewrites of a compile are done, and no other.

A wrong answer that some rewrite makes is there with enough fuel and gone without, so that a binary search finds the
rewrite. (Whalley, "Automatic isolation of compiler errors", 1994.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from dsjit.ir.graph import UNKNOWN_SOURCE, Source

__all__ = ["Fuel", "Rewrite", "RewriteKind"]

RewriteKind: TypeAlias = Literal["pass", "kernel", "fusion", "library"]
"""pass: a pass changed the Graph. kernel: an op runs in generated code, not as torch implements it. fusion: two
kernels, or an op and a kernel, became one. library: an op of another library's computes it."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One rewrite: `name` is the pass or the op, `detail` what it was fused with; `source` is of the op."""

    kind: RewriteKind
    name: str
    source: Source = UNKNOWN_SOURCE
    detail: str = ""

    def __str__(self) -> str:
        where = f" at {self.source}" if self.source.line else ""
        return f"{self.kind} {self.name}{where}{f' {self.detail}' if self.detail else ''}"


@dataclass(slots=True)
class Fuel:
    """limit: how many rewrites may be done; None: all. done: those that were, in order."""

    limit: int | None = None
    done: list[Rewrite] = field(default_factory=list)

    def burn(self, rewrite: Rewrite) -> bool:
        """Whether `rewrite` may be done; it then counts."""
        if self.limit is not None and len(self.done) >= self.limit:
            return False
        self.done.append(rewrite)
        return True

    def fork(self) -> Fuel:
        """As much fuel as is left, for an attempt that may be given up."""
        return Fuel(self.limit, list(self.done))

    def adopt(self, attempt: Fuel) -> None:
        """What `attempt`, a fork, burnt is burnt."""
        self.done = attempt.done
