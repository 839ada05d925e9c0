"""What is written down while a profile runs: little, and nothing that grows with the length of the run.

A Recording is told each run of a Program and each call of a jitted object, from any thread, and only puts it in a list:
what is told is added up later, many at a time. Sums, counts and minima are of all; medians are of the last ones
(`KEPT_RUNS`), and the timeline shows the first ones (`KEPT_SPANS`).
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np

from dsjit.profiler.device_timing import DeviceTimedRun
from dsjit.profiler.sampling import MemorySample, Sighting, Where
from dsjit.profiler.timing import Nanoseconds, RawRun, TimedRun

__all__ = ["CallKind", "CallSamples", "ProgramSamples", "Recording", "Samples", "Span"]

CallKind: TypeAlias = Literal["compiled", "traced", "eager"]

_T = TypeVar("_T")

KEPT_RUNS: Final = 1024
KEPT_SPANS: Final = 4096
"""Of calls, and as many of Programs."""

CHUNK: Final = 128
"""Runs, or calls, that are added up at once."""

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

    def add(self, durations: Sequence[int]) -> None:
        if durations:
            least = min(durations)
            self.least = min(self.least, least) if self.count else least
            self.count += len(durations)
            self.total += sum(durations)
            self.last.extend(durations)

    @property
    def median(self) -> float:
        """Of the last ones; 0 when there are none."""
        return statistics.median(self.last) if self.last else 0.0


class _Told(NamedTuple):
    """A call that ended: see `CallSamples`. first, last: when its first Program began, and its last one ended; 0
    without any."""

    begin: int
    end: int
    thread: int
    programs: int
    first: int
    last: int
    nested: int


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
    pending: list[_Told] = field(default_factory=list)

    def fold(self) -> list[_Told]:
        """Add up what is pending, and return it."""
        calls = _taken(self.pending)
        self.duration.add([call.end - call.begin for call in calls])
        for call in calls:
            self.programs += call.programs
            self.nested += call.nested
            if call.first:
                self.before += call.first - call.begin
                self.between += call.last - call.first - call.programs
                self.after += call.end - call.last
        return calls


@dataclass(slots=True)
class ProgramSamples:
    """The runs of one Program.

    timed: what stands in for its `run`. duration: of a run. outside: ns of a run before its first step, and after its
    last one. totals, least, launch: by step, ns in the step, the shortest time, and ns since the step before it.
    host: ns that the host was in it, which is less than `duration` where a GPU runs the steps.
    first: the runs that the timeline shows. pending: runs, and the threads that they were on.
    """

    name: str
    timed: TimedRun | DeviceTimedRun
    steps: int
    duration: Samples = field(default_factory=Samples)
    host: int = 0
    before: int = 0
    after: int = 0
    totals: Nanoseconds = field(init=False)
    least: Nanoseconds = field(init=False)
    launch: Nanoseconds = field(init=False)
    first: list[tuple[int, int, Nanoseconds, Nanoseconds]] = field(default_factory=list)
    recent: deque[Nanoseconds] = field(default_factory=lambda: deque(maxlen=KEPT_RUNS // CHUNK))
    pending: list[tuple[RawRun, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.totals = np.zeros(self.steps, dtype=np.int64)
        self.launch = np.zeros(self.steps, dtype=np.int64)
        self.least = np.full(self.steps, np.iinfo(np.int64).max)

    def fold(self) -> list[tuple[RawRun, int]]:
        """Add up what is pending, and return it."""
        told = _taken(self.pending)
        runs = [run for run, _ in told]
        self.host += sum([run[1] - run[0] for run in runs])
        if not runs or not self.steps:
            self.duration.add([run[1] - run[0] for run in runs])
            return told
        times = self.timed.times(runs)
        self.duration.add((times.last - times.first).tolist())
        begins, ends = times.begins, times.ends
        room = TIMELINE_RUNS - len(self.first)
        first, last = times.first.tolist(), times.last.tolist()
        self.first += [(first[n], last[n], begins[n], ends[n]) for n in range(min(room, len(runs)))]
        taken = ends - begins
        self.totals += taken.sum(axis=0)
        self.least = np.minimum(self.least, taken.min(axis=0))
        self.recent.append(taken)
        self.launch[1:] += (begins[:, 1:] - ends[:, :-1]).sum(axis=0)
        self.before += int((begins[:, 0] - times.first).sum())
        self.after += int((times.last - ends[:, -1]).sum())
        return told

    def medians(self) -> Sequence[float]:
        """ns, by step."""
        if not self.recent:
            return [0.0] * self.steps
        return [float(value) for value in np.median(np.concatenate(list(self.recent)), axis=0)]


def _taken(pending: list[_T]) -> list[_T]:
    """What is in the list, which other threads append to meanwhile; it is no more in it."""
    count = len(pending)
    taken = pending[:count]
    del pending[:count]
    return taken


class _Open(threading.local):
    """The jitted calls that this thread is in: for each [ns in Programs, begin of the first, end of the last one, ns in
    nested calls]."""

    def __init__(self) -> None:
        self.stack: list[list[int]] = []


class Recording:
    """begin, end: of the time that is recorded; `end` is 0 until `stop`. thread: that began it.

    programs: by the key that they were announced with. calls: by name and kind. alone: ns in Programs that ran in no
    jitted call (backwards), on `thread`. top: ns in jitted calls on `thread`, nested ones not counted twice.
    spans: of calls and Programs, in the order in which they began, once it has stopped.
    sighted: ns of what was seen on `thread` while no Program ran, by the kind of the call ("" outside of calls).
    memory: what the process held, over time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = _Open()
        self._program_spans: list[Span] = []
        self._call_spans: list[Span] = []
        self.thread = threading.get_ident()
        self.programs: dict[int, ProgramSamples] = {}
        self.calls: dict[tuple[str, CallKind], CallSamples] = {}
        self.guards: dict[int, Samples] = {}
        self.spans: Sequence[Span] = ()
        self.sighted: dict[tuple[CallKind | Literal[""], Where], Samples] = {}
        self.memory: list[MemorySample] = []
        self._in_call: list[Sighting] = []
        self.alone = 0
        self.top = 0
        self.end = 0
        self.begin = time.monotonic_ns()

    def stop(self) -> None:
        """Nothing is recorded from now on."""
        self.end = self.end or time.monotonic_ns()
        for samples in list(self.programs.values()):
            self._fold_runs(samples)
        for (name, kind), calls in list(self.calls.items()):
            self._fold_calls(name, kind, calls)
        self.spans = sorted([*self._program_spans, *self._call_spans], key=lambda span: (span.begin, -span.end))

    def on_run(self, samples: ProgramSamples, run: RawRun) -> None:
        """A Program ran."""
        begin, end, _, _ = run
        stack = self._open.stack
        thread = threading.get_ident()
        if stack:
            call = stack[-1]
            call[0] += end - begin
            call[1] = call[1] or begin
            call[2] = end
        elif thread == self.thread:
            self.alone += end - begin
        samples.pending.append((run, thread))
        if len(samples.pending) >= CHUNK:
            self._fold_runs(samples)

    def enter_call(self) -> None:
        """This thread calls a jitted object."""
        self._open.stack.append([0, 0, 0, 0])

    def leave_call(self, name: str, kind: CallKind, begin: int, end: int) -> None:
        """The call that was entered last ends."""
        stack = self._open.stack
        programs, first, last, nested = stack.pop()
        thread = threading.get_ident()
        if stack:
            stack[-1][3] += end - begin
        elif thread == self.thread:
            self.top += end - begin
            for _, where, ns in _taken(self._in_call):
                self._sight(kind, where, ns)
        calls = self.calls.get((name, kind))
        if calls is None:
            calls = self.calls.setdefault((name, kind), CallSamples())
        calls.pending.append(_Told(begin, end, thread, programs, first, last, nested))
        if len(calls.pending) >= CHUNK:
            self._fold_calls(name, kind, calls)

    def on_guard(self, key: int, duration: int) -> None:
        """A guard was checked once more, to know how long that takes."""
        with self._lock:
            self.guards.setdefault(key, Samples()).add([duration])

    def on_sighting(self, sighting: Sighting) -> None:
        """Something was seen. Inside a call, it is not known yet which way that goes."""
        inside, where, ns = sighting
        if inside:
            self._in_call.append(sighting)
        else:
            self._sight("", where, ns)

    def _sight(self, kind: CallKind | Literal[""], where: Where, ns: int) -> None:
        with self._lock:
            self.sighted.setdefault((kind, where), Samples()).add([ns])

    def _fold_runs(self, samples: ProgramSamples) -> None:
        with self._lock:
            told = samples.fold()
            room = KEPT_SPANS - len(self._program_spans)
            self._program_spans += [Span(samples.name, "program", *run[:2], thread) for run, thread in told[:room]]

    def _fold_calls(self, name: str, kind: CallKind, samples: CallSamples) -> None:
        with self._lock:
            told = samples.fold()
            room = KEPT_SPANS - len(self._call_spans)
            self._call_spans += [Span(name, kind, call.begin, call.end, call.thread) for call in told[:room]]
