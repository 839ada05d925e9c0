"""Counters: what ran compiled, what ran eagerly and why, what was generated."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Final

__all__ = ["Counters", "Registry", "Stats"]


@dataclass(slots=True)
class Counters:
    """Counts of one jitted object since the last reset.

    calls_compiled: calls answered by a compiled Program. calls_traced: calls that ran eagerly under the tracer and
        were compiled for the next time. calls_eager: calls that ran eagerly for a reason (`eager_reasons`).
    traces, compiles: runs of the tracer, and of the compiler (once for each Program; what looks at data is cut there
        into several). programs_reused: Programs that were found compiled. cache_hits: calls that found a Program.
    kernels_generated, kernels_reused: machine code made for this object, and found in the process's cache.
    recompiles: runs of the tracer after the first, because no program fitted (`recompile_causes` counts why).
    ops_in_kernels, ops_in_library: ops of the compiled Graphs that became part of generated kernels, and that run
        as library calls (native matrix products included).
    """

    calls_compiled: int = 0
    calls_traced: int = 0
    calls_eager: int = 0
    traces: int = 0
    compiles: int = 0
    programs_reused: int = 0
    cache_hits: int = 0
    kernels_generated: int = 0
    kernels_reused: int = 0
    ops_in_kernels: int = 0
    ops_in_library: int = 0
    recompiles: int = 0
    eager_reasons: Counter[str] = field(default_factory=Counter)
    recompile_causes: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counters) -> None:
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.eager_reasons.update(other.eager_reasons)
        self.recompile_causes.update(other.recompile_causes)

    @property
    def is_zero(self) -> bool:
        """Whether nothing was counted."""
        return not (any(map(self.__getattribute__, _NUMBERS)) or self.eager_reasons or self.recompile_causes)


_NUMBERS: Final = tuple([entry.name for entry in fields(Counters) if entry.default is not MISSING])


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot. The attributes of `Counters`, over all jitted objects; `by_object` has them one by one, by name."""

    total: Counters
    by_object: Mapping[str, Counters]

    def __getattr__(self, name: str) -> object:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.total, name)

    def __str__(self) -> str:
        lines = [_line("all", self.total)]
        lines += [_line(name, counters) for name, counters in self.by_object.items()]
        reasons = [f"  eager {count}x: {reason}" for reason, count in self.total.eager_reasons.most_common()]
        causes = [f"  recompiled {count}x: {cause}" for cause, count in self.total.recompile_causes.most_common()]
        return "\n".join(lines + reasons + causes)


def _line(name: str, c: Counters) -> str:
    return (
        f"{name}: {c.calls_compiled} compiled, {c.calls_traced} traced and {c.calls_eager} eager calls; "
        f"{c.recompiles} recompiles, {c.compiles} compiles, {c.kernels_generated} kernels generated and "
        f"{c.kernels_reused} reused; "
        f"{c.ops_in_kernels} ops in kernels, {c.ops_in_library} in library calls"
    )


class Registry:
    """Hands out Counters and adds them up. One per process, made by `dsjit.api.jitted`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, Counters] = {}
        self._taken: dict[str, int] = {}

    def register(self, name: str) -> Counters:
        """Counters of a new jitted object; a name that is taken gets a number."""
        with self._lock:
            unique = name
            while unique in self._counters:
                number = self._taken.get(name, 1) + 1
                self._taken[name] = number
                unique = f"{name}#{number}"
            counters = self._counters[unique] = Counters()
            return counters

    def snapshot(self) -> Stats:
        with self._lock:
            total = Counters()
            parts: dict[str, Counters] = {}
            for name, counters in self._counters.items():
                if not counters.is_zero:
                    copy = parts[name] = Counters()
                    copy.add(counters)
                    total.add(copy)
            return Stats(total, parts)

    def reset(self) -> None:
        with self._lock:
            for counters in self._counters.values():
                for entry in fields(counters):
                    setattr(counters, entry.name, type(getattr(counters, entry.name))())
