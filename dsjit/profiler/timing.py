"""Times the steps of a Program, one by one, without another compile.

A TimedRun stands in for the `run` of a Program while somebody profiles: the same text and the same machine code, with
other functions bound to some of its names. Native sequences take the address where they write timestamps, and library
calls write down when they begin and end. A Program that nobody profiles has its own `run`, and pays nothing.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from dsjit.codegen.llvm.executor import build_sequence
from dsjit.codegen.placement import Step
from dsjit.codegen.program import Frame, Program, Run
from dsjit.fusion.lower import FusedKernel
from dsjit.ir.graph import Node, Source
from dsjit.ir.print_graph import op_name

__all__ = [
    "Layout",
    "Nanoseconds",
    "RawRun",
    "RunTimes",
    "StepTime",
    "TimedRun",
    "step_name",
    "step_sources",
    "time_steps",
]

now: Final = time.monotonic_ns
"""The clock of native sequences, too."""

Ranges = Callable[[str], AbstractContextManager[Any]]
"""Makes a named range that another profiler sees."""

Nanoseconds = npt.NDArray[np.int64]


RawRun: TypeAlias = tuple[int, int, bytes, list[Any]]
"""What one run leaves: when it began and ended, the timestamps of its native sequences, and two for each library
call, in the order in which they ran (on a GPU: events). `times` makes sense of it, when there is time for that."""


@dataclass(frozen=True, slots=True)
class RunTimes:
    """Some runs of a Program, in ns of the monotonic clock. first, last: of the runs. begins, ends: of the steps, [run,
    step]."""

    first: Nanoseconds
    last: Nanoseconds
    begins: Nanoseconds
    ends: Nanoseconds


@dataclass(slots=True)
class Layout:
    """Where each event of a run writes: a sequence of n steps has n + 1 timestamps, a library call two.

    sequences: position of each. calls: positions of what library calls write, in the order in which they run.
    begins, ends: positions by step.
    """

    sequences: dict[str, int] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    size: int = 0

    @classmethod
    def of(cls, program: Program, steps: Sequence[Step], native: Collection[Node]) -> Layout:
        layout = cls()
        sequences = iter(program.sequences.items())
        left = 0
        for step in steps:
            is_native = isinstance(step.work, FusedKernel) or step.work.node in native
            if not is_native:
                layout.calls += (layout.size, layout.size + 1)
                layout.size += 1
            elif not left:
                name, sequence = next(sequences)
                left = len(sequence)
                layout.sequences[name] = layout.size
                layout.size += 1
            left -= is_native
            layout.begins.append(layout.size - 1)
            layout.ends.append(layout.size)
            layout.size += 1
        return layout


class TimedRun:
    """Called as the `run` of `program`, which it stands in for; `on_run` is told of each run that returns.

    steps, native: what the Program was assembled from (see `codegen.assemble`).
    ranges: every step runs in a range of this kind. Its steps then run one by one, which takes longer.
    Reentrant, as the Program is.
    """

    on_device = False

    def __init__(
        self,
        program: Program,
        steps: Sequence[Step],
        native: Collection[Node],
        on_run: Callable[[RawRun], None],
        ranges: Ranges | None = None,
    ) -> None:
        self._program = program
        self._steps = steps
        self._layout = Layout.of(program, steps, native)
        self._begins = np.array(self._layout.begins, dtype=np.int64)
        self._ends = np.array(self._layout.ends, dtype=np.int64)
        self._on_run = on_run
        self._ranges = ranges
        self._idle: list[_Twin] = []

    def __call__(self, inputs: Iterable[torch.Tensor], frame: Frame, threads: int) -> list[torch.Tensor]:
        try:
            twin = self._idle.pop()
        except IndexError:
            twin = _Twin(self._program, self._layout, self._names(), self._ranges)
        try:
            twin.calls.clear()
            begin = now()
            outputs = twin.run(inputs, frame, threads)
            run = begin, now(), bytes(twin.stamps), twin.calls[:]
        finally:
            self._idle.append(twin)
        self._on_run(run)
        return outputs

    def _names(self) -> list[str]:
        return [step_name(step) for step in self._steps]

    def times(self, runs: Sequence[RawRun]) -> RunTimes:
        """What `on_run` was told, by step."""
        table = np.frombuffer(b"".join([stamps for _, _, stamps, _ in runs]), dtype=np.int64)
        table = table.reshape(len(runs), -1).copy()
        if self._layout.calls:
            table[:, self._layout.calls] = [calls for *_, calls in runs]
        first, last = (np.array([run[which] for run in runs], dtype=np.int64) for which in (0, 1))
        return RunTimes(first, last, table[:, self._begins], table[:, self._ends])


class _Twin:
    """The function of a Program with clocks bound to its names. For one run at a time.

    stamps: what native sequences write. calls: what library calls do.
    """

    __slots__ = ("calls", "run", "stamps")

    run: Run

    def __init__(self, program: Program, layout: Layout, names: Sequence[str], ranges: Ranges | None) -> None:
        self.stamps: Any = (ctypes.c_int64 * max(layout.size, 1))()
        self.calls: list[int] = []
        address = ctypes.addressof(self.stamps)
        labels = dict(zip(layout.begins, names, strict=True))
        bound = dict(program.function.__globals__)
        for name, position in layout.sequences.items():
            sequence = program.sequences[name]
            if ranges is None:
                bound[name] = _timed_sequence(sequence.run_timed, address + 8 * position)
            else:
                parts = [build_sequence((call,)).run_timed for call in sequence.calls]
                where = range(position, position + len(parts))
                stamps, own = [address + 8 * at for at in where], [labels[at] for at in where]
                bound[name] = _ranged_sequence(parts, stamps, own, ranges)
        called = [labels[position] for position in layout.calls[::2]]
        for name, value in list(bound.items()):
            if name[0] == "f" and name[1:].isdigit():
                bound[name] = self._timed_call(value) if ranges is None else self._ranged_call(value, called, ranges)
        self.run = FunctionType(program.function.__code__, bound, "run")

    def _timed_call(self, function: Callable[..., Any]) -> Callable[..., Any]:
        log = self.calls.append

        def timed(*args: Any, **kwargs: Any) -> Any:
            log(now())
            result = function(*args, **kwargs)
            log(now())
            return result

        return timed

    def _ranged_call(self, function: Callable[..., Any], names: Sequence[str], ranges: Ranges) -> Callable[..., Any]:
        """names: of all library calls, in their order."""
        calls = self.calls

        def ranged(*args: Any, **kwargs: Any) -> Any:
            with ranges(names[len(calls) // 2]):
                calls.append(now())
                result = function(*args, **kwargs)
                calls.append(now())
            return result

        return ranged


def _timed_sequence(run_timed: Callable[[int, int, int], None], stamps: int) -> Callable[[int, int], None]:
    def timed(address: int, threads: int) -> None:
        run_timed(address, threads, stamps)

    return timed


def _ranged_sequence(
    parts: Sequence[Callable[[int, int, int], None]], stamps: Sequence[int], names: Sequence[str], ranges: Ranges
) -> Callable[[int, int], None]:
    def ranged(address: int, threads: int) -> None:
        for run_timed, at, name in zip(parts, stamps, names, strict=True):
            with ranges(name):
                run_timed(address, threads, at)

    return ranged


def step_name(step: Step) -> str:
    """The kernel's or the op's."""
    return step.work.kernel.name if isinstance(step.work, FusedKernel) else op_name(step.work.node.op)


def step_sources(step: Step) -> tuple[Source, ...]:
    """The user's lines that it comes from."""
    if isinstance(step.work, FusedKernel):
        return tuple(dict.fromkeys(node.source for node in step.work.nodes))
    return (step.work.node.source,)


@dataclass(frozen=True, slots=True)
class StepTime:
    """One step: the kernel's or the op's name, the user's lines that it comes from, and its median time in ns."""

    name: str
    sources: tuple[Source, ...]
    nanoseconds: float


def time_steps(
    program: Program,
    steps: Sequence[Step],
    native: Collection[Node],
    inputs: Sequence[torch.Tensor],
    repeats: int = 10,
) -> tuple[StepTime, ...]:
    """Run the Program `repeats` times on `inputs` and give the median time of each step, in the order in which they
    run.

    The runs are real: what the Graph writes to its inputs is written each time.
    """
    runs: list[RawRun] = []
    timed = TimedRun(program, steps, native, runs.append)
    program.run = timed
    try:
        for _ in range(repeats + 1):
            program(inputs)
    finally:
        program.run = program.function
    times = timed.times(runs[1:])
    medians = np.median(times.ends - times.begins, axis=0)
    return tuple(
        [StepTime(step_name(step), step_sources(step), float(ns)) for step, ns in zip(steps, medians, strict=True)]
    )
