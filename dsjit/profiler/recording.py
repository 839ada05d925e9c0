"""What is written down while a profile runs: little, and nothing that grows with the length of the run.

A Recording is told each run of a Program and each call of a jitted object, from any thread. Sums, counts and minima are
of all of them; medians are of the last ones (`KEPT_RUNS`), and the timeline shows the first ones (`KEPT_SPANS`).
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np

from dsjit.profiler.timing import Nanoseconds, TimedRun

__all__ = ["CallKind", "CallSamples", "ProgramSamples", "Recording", "Samples", "Span"]

CallKind: TypeAlias = Literal["compiled", "traced", "eager"]

KEPT_RUNS: Final = 1024
KEPT_SPANS: Final = 4096
CHUNK: Final = 128
"""Runs that are added up at once."""

TIMELINE_RUNS: Final = 24
"""Of each Program, whose steps the timeline shows one by one."""


@dataclass(frozen=True, slots=True)
class Span:
    """From begin to end, in ns of the monotonic clock. kind: of a call, or "program"."""

    name: str
    kind: str
    begin: int
    end: int
    thread: int


@dataclass(slots=True)
class Samples:
    """Of one duration, in ns."""

    count: int = 0
    total: int = 0
    least: int = 0
    last: deque[int] = field(default_factory=lambda: deque(maxlen=KEPT_RUNS))

    def add(self, duration: int) -> None:
        self.least = duration if not self.count else min(self.least, duration)
        self.count += 1
        self.total += duration
        self.last.append(duration)

    @property
    def median(self) -> float:
        """Of the last ones; 0 when there are none."""
        return statistics.median(self.last) if self.last else 0.0


@dataclass(slots=True)
class CallSamples:
    """The calls of one jitted object that went one way.

    duration: of each call, with all that is in it. programs: ns in Programs. before, between, after: ns before the
    first Program, between Programs, and after the last one. nested: ns in other jitted calls inside.
    """

    duration: Samples = field(default_factory=Samples)
    programs: int = 0
    before: int = 0
    between: int = 0
    after: int = 0
    nested: int = 0


@dataclass(slots=True)
class ProgramSamples:
    """The runs of one Program.

    timed: what stands in for its `run`. duration: of a run. outside: ns of a run before its first step, and after its
    last one. totals, least, launch: by step, ns in the step, the shortest time, and ns since the step before it.
    first: the runs that the timeline shows.
    """

    name: str
    timed: TimedRun
    steps: int
    duration: Samples = field(default_factory=Samples)
    before: int = 0
    after: int = 0
    totals: Nanoseconds = field(init=False)
    least: Nanoseconds = field(init=False)
    launch: Nanoseconds = field(init=False)
    first: list[tuple[int, int, Nanoseconds, Nanoseconds]] = field(default_factory=list)
    recent: deque[Nanoseconds] = field(default_factory=lambda: deque(maxlen=KEPT_RUNS // CHUNK))
    pending: list[tuple[int, int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.totals = np.zeros(self.steps, dtype=np.int64)
        self.launch = np.zeros(self.steps, dtype=np.int64)
        self.least = np.full(self.steps, np.iinfo(np.int64).max)

    def fold(self) -> None:
        """Add up what is pending."""
        runs, self.pending = self.pending, []
        for begin, end, _ in runs:
            self.duration.add(end - begin)
        times = [self.timed.times(*run) for run in runs]
        self.first += [(t.begin, t.end, t.begins, t.ends) for t in times[: TIMELINE_RUNS - len(self.first)]]
        if not runs or not self.steps:
            return
        begins, ends = np.stack([t.begins for t in times]), np.stack([t.ends for t in times])
        taken = ends - begins
        self.totals += taken.sum(axis=0)
        self.least = np.minimum(self.least, taken.min(axis=0))
        self.recent.append(taken)
        self.launch[1:] += (begins[:, 1:] - ends[:, :-1]).sum(axis=0)
        self.before += sum(int(t.begins[0]) - t.begin for t in times)
        self.after += sum(t.end - int(t.ends[-1]) for t in times)

    def medians(self) -> Sequence[float]:
        """ns, by step."""
        if not self.recent:
            return [0.0] * self.steps
        return [float(value) for value in np.median(np.concatenate(list(self.recent)), axis=0)]


class _Open(threading.local):
    """The jitted calls that this thread is in: for each [ns in Programs, begin of the first, end of the last one, ns in
    nested calls]."""

    def __init__(self) -> None:
        self.stack: list[list[int]] = []


class Recording:
    """begin, end: of the time that is recorded; `end` is 0 until `stop`. thread: that began it.

    programs: by the key that they were announced with. calls: by name and kind. alone: ns in Programs that ran in no
    jitted call (backwards), on `thread`. top: ns in jitted calls on `thread`, nested ones not counted twice.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = _Open()
        self.thread = threading.get_ident()
        self.programs: dict[int, ProgramSamples] = {}
        self.calls: dict[tuple[str, CallKind], CallSamples] = {}
        self.guards: dict[int, Samples] = {}
        self.spans: list[Span] = []
        self.alone = 0
        self.top = 0
        self.end = 0
        self.begin = time.monotonic_ns()

    def stop(self) -> None:
        """Nothing is recorded from now on."""
        self.end = time.monotonic_ns()
        with self._lock:
            for samples in self.programs.values():
                samples.fold()

    def on_run(self, samples: ProgramSamples, begin: int, end: int, stamps: bytes) -> None:
        """A Program ran."""
        stack = self._open.stack
        if stack:
            call = stack[-1]
            call[0] += end - begin
            call[1] = call[1] or begin
            call[2] = end
        thread = threading.get_ident()
        with self._lock:
            if not stack and thread == self.thread:
                self.alone += end - begin
            samples.pending.append((begin, end, stamps))
            if len(samples.pending) >= CHUNK:
                samples.fold()
            self._span(samples.name, "program", begin, end, thread)

    def enter_call(self) -> None:
        """This thread calls a jitted object."""
        self._open.stack.append([0, 0, 0, 0])

    def leave_call(self, name: str, kind: CallKind, begin: int, end: int) -> None:
        """The call that was entered last ends."""
        stack = self._open.stack
        programs, first, last, nested = stack.pop()
        if stack:
            stack[-1][3] += end - begin
        thread = threading.get_ident()
        with self._lock:
            samples = self.calls.get((name, kind))
            if samples is None:
                samples = self.calls[name, kind] = CallSamples()
            samples.duration.add(end - begin)
            samples.programs += programs
            samples.nested += nested
            if first:
                samples.before += first - begin
                samples.between += last - first - programs
                samples.after += end - last
            if not stack and thread == self.thread:
                self.top += end - begin
            self._span(name, kind, begin, end, thread)

    def on_guard(self, key: int, duration: int) -> None:
        """A guard was checked once more, to know how long that takes."""
        with self._lock:
            self.guards.setdefault(key, Samples()).add(duration)

    def _span(self, name: str, kind: str, begin: int, end: int, thread: int) -> None:
        if len(self.spans) < KEPT_SPANS:
            self.spans.append(Span(name, kind, begin, end, thread))
