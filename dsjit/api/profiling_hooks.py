"""Watches jitted objects and Programs while profiles run, and not at all otherwise.

While there is a profile, `Jitted.__call__` and the `run` of each Program are replaced by ones that take times,
`Branch.after` by one that counts, and a thread samples what else runs. Nothing asks, in a call that nobody profiles,
whether somebody does.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsjit.api.compile import Compilation
from dsjit.api.jitted import Jitted
from dsjit.api.recompiles import Cause
from dsjit.api.session import Session
from dsjit.api.stats import Counters
from dsjit.api.trace_nodes import Branch, Leaf
from dsjit.codegen.program import Program
from dsjit.codegen.sized_program import SizedProgram
from dsjit.codegen.triton.program import GpuProgram
from dsjit.codegen.triton.replay import ReplayedProgram
from dsjit.profiler.device_timing import DeviceTimedRun
from dsjit.profiler.recording import CallKind, ProgramSamples, Recording
from dsjit.profiler.sampling import Sampler
from dsjit.profiler.timing import Ranges, RawRun, TimedRun, now
from dsjit.trace.looks.outcome import Outcome
from dsjit.trace.recording.source import SourceFinder

__all__ = ["ObjectHistory", "ProfiledRun", "Watcher"]


@dataclass(slots=True)
class ObjectHistory:
    """A jitted object that was called. before: its counters then. recompiles: that it had then. calls: since."""

    jitted: Jitted
    before: Counters
    recompiles: tuple[Cause, ...]
    calls: int = 0


@dataclass(slots=True, eq=False)
class ProfiledRun:
    """What one profile takes part in: the recording, and the objects behind it.

    compilations: by the id of each of their Programs. made: what was compiled in this time. ranges: see `TimedRun`.
    outcomes: how often a look saw what, by the id of its Branch. sampler: while it runs.
    """

    ranges: Ranges | None = None
    recording: Recording = field(default_factory=Recording)
    compilations: dict[int, Compilation] = field(default_factory=dict)
    made: list[Compilation] = field(default_factory=list)
    objects: dict[int, ObjectHistory] = field(default_factory=dict)
    outcomes: dict[int, Counter[Outcome]] = field(default_factory=dict)
    sampler: Sampler | None = None


class Watcher:
    """The hooks of one Session. Thread-safe; calls that run when a profile begins or ends are not part of it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.RLock()
        self._runs: tuple[ProfiledRun, ...] = ()
        self._call: Callable[..., Any] = Jitted.__call__
        self._after: Callable[[Branch, Outcome], Sequence[Leaf | Branch]] = Branch.after
        self._finder = SourceFinder()
        self._attached: dict[int, tuple[Program, Compilation]] = {}
        self._sized: dict[int, SizedProgram] = {}
        self._gpu: dict[int, GpuProgram] = {}
        self._paused: list[ReplayedProgram] = []

    def begin(self, run: ProfiledRun) -> None:
        """From now on `run` is told."""
        with self._lock:
            if not self._runs:
                self._hook()
            self._runs = (*self._runs, run)
            self._detach()
            for compilation in list(self._session.programs.values()):
                self._attach(compilation)
            run.recording = Recording()
            thread = run.recording.thread
            run.sampler = Sampler(
                thread,
                self._finder.is_users_file,
                TimedRun.__call__.__code__,
                Watcher._watched_call.__code__,
                lambda: self._session.is_tracing(thread),
                run.recording.on_sighting,
                run.recording.memory.append,
            )
            run.sampler.start()
            run.recording.begin = now()

    def end(self, run: ProfiledRun) -> None:
        """No more."""
        run.recording.end = now()
        if run.sampler is not None:
            run.sampler.stop()
        run.recording.stop()
        with self._lock:
            self._runs = tuple([each for each in self._runs if each is not run])
            self._detach()
            if not self._runs:
                self._unhook()
                return
            for compilation in list(self._session.programs.values()):
                self._attach(compilation)

    # -- calls ---------------------------------------------------------------------------------------------------

    def _hook(self) -> None:
        self._call = Jitted.__call__
        self._session.on_compiled = (*self._session.on_compiled, self._on_compiled)

        def __call__(jitted: Jitted, /, *args: Any, **kwargs: Any) -> Any:
            return self._watched_call(jitted, args, kwargs)

        __call__._torchdynamo_disable = True  # type: ignore[attr-defined]
        Jitted.__call__ = __call__  # type: ignore[method-assign]
        after = self._after = Branch.after

        def counted(branch: Branch, outcome: Outcome) -> Sequence[Leaf | Branch]:
            for run in self._runs:
                run.outcomes.setdefault(id(branch), Counter())[outcome] += 1
            return after(branch, outcome)

        Branch.after = counted  # type: ignore[method-assign, assignment]

    def _unhook(self) -> None:
        Jitted.__call__ = self._call  # type: ignore[method-assign]
        Branch.after = self._after  # type: ignore[method-assign, assignment]
        self._session.on_compiled = tuple([each for each in self._session.on_compiled if each != self._on_compiled])

    def _watched_call(self, jitted: Jitted, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        runs = self._runs
        if not runs or self._session.is_tracing():
            return self._call(jitted, *args, **kwargs)
        counters = jitted.counters
        compiled, traced = counters.calls_compiled, counters.calls_traced
        histories = [_history(run, jitted) for run in runs]
        for run in runs:
            run.recording.enter_call()
        begin = now()
        try:
            return self._call(jitted, *args, **kwargs)
        finally:
            end = now()
            kind: CallKind = "eager"
            if counters.calls_compiled != compiled:
                kind = "compiled"
            elif counters.calls_traced != traced:
                kind = "traced"
            for run, history in zip(runs, histories, strict=True):
                run.recording.leave_call(jitted.name, kind, begin, end)
                history.calls += 1
                if history.calls & (history.calls - 1) == 0:  # the 1st, 2nd, 4th, 8th, ... call
                    _time_guards(run, jitted, args, kwargs)

    # -- programs ------------------------------------------------------------------------------------------------

    def _on_compiled(self, compilation: Compilation) -> None:
        with self._lock:
            for run in self._runs:
                run.made.append(compilation)
            self._attach(compilation)

    def _attach(self, compilation: Compilation) -> None:
        program = compilation.program
        if isinstance(program, Program):
            self._attach_program(program, compilation)
        if isinstance(program, ReplayedProgram):
            program.paused = True
            self._paused.append(program)
            program = program.program
        if isinstance(program, GpuProgram):
            self._attach_gpu(program, compilation)
        if isinstance(program, SizedProgram):
            self._attach_sized(program, lambda made: self._attach_program(made, compilation))

    def _attach_sized(self, program: SizedProgram, attach: Callable[[Program], None]) -> None:
        """Each shape has a Program of its own for as long."""
        self._sized[id(program)] = program
        program.on_program = attach
        for each in list(program.programs.values()):
            attach(each)

    def _attach_program(self, program: Program, compilation: Compilation) -> None:
        ranges = next((run.ranges for run in self._runs if run.ranges is not None), None)

        def on_run(told: RawRun) -> None:
            self._on_run(program, compilation, timed, told)

        timed = TimedRun(program, compilation.steps, compilation.native, on_run, ranges)
        program.run = timed
        self._attached[id(program)] = program, compilation

    def _attach_gpu(self, program: GpuProgram, compilation: Compilation) -> None:
        """The Programs of further streams are copies, and run the same."""

        def attach(every: Sequence[Program]) -> None:
            first = every[0]

            def on_run(told: RawRun) -> None:
                self._on_run(first, compilation, timed, told)

            timed = DeviceTimedRun(first, compilation.steps, compilation.native, on_run, program.new_event)
            for each in every:
                each.run = timed

        every = (program.program, *program.streams.values())
        self._gpu[id(program)] = program
        for sized in [each for each in every if isinstance(each, SizedProgram)]:
            self._attach_sized(sized, lambda made: attach((made,)))
        if not program.serves_sizes:
            attach([each for each in every if isinstance(each, Program)])

    def _on_run(
        self, program: Program, compilation: Compilation, timed: TimedRun | DeviceTimedRun, told: RawRun
    ) -> None:
        for run in self._runs:
            recording = run.recording
            samples = recording.programs.get(id(program))
            if samples is None:
                run.compilations[id(program)] = compilation
                new = ProgramSamples(compilation.captured.name, timed, len(compilation.steps))
                samples = recording.programs.setdefault(id(program), new)
            recording.on_run(samples, told)

    def _detach(self) -> None:
        for replayed in self._paused:
            replayed.paused = False
        self._paused.clear()
        own = [each for gpu in self._gpu.values() for each in (gpu.program, *gpu.streams.values())]
        for program in [*[each for each, _ in self._attached.values()], *own]:
            if isinstance(program, Program):
                program.run = program.function
        for sized in [*self._sized.values(), *own]:
            if isinstance(sized, SizedProgram):
                sized.on_program = None
                sized.programs.clear()
        self._attached, self._sized, self._gpu = {}, {}, {}


def _history(run: ProfiledRun, jitted: Jitted) -> ObjectHistory:
    history = run.objects.get(id(jitted))
    if history is None:
        before = Counters()
        before.add(jitted.counters)
        history = run.objects[id(jitted)] = ObjectHistory(jitted, before, jitted.recompiles)
    return history


def _time_guards(run: ProfiledRun, jitted: Jitted, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check the guards of the newest program once more, to know how long that takes."""
    for tree in jitted.trees[:1]:
        begin = now()
        found = tree.guard.check(args, kwargs)
        if found is not None:
            run.recording.on_guard(id(tree), now() - begin)
