"""Times the steps of a Program, one by one, without another compile.

A TimedRun stands in for the `run` of a Program while somebody profiles: the same text and the same machine code, with
other functions bound to some of its names. Native sequences take the address where they write timestamps, and library
calls write down when they begin and end. A Program that nobody profiles has its own `run`, and pays nothing.
"""

from __future__ import annotations

import ctypes
import itertools
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from dsjit.codegen.llvm.executor import build_sequence
from dsjit.codegen.placement import Step
from dsjit.codegen.program import Frame, Program, Run
from dsjit.fusion.lower import FusedKernel
from dsjit.ir.graph import Node, Source
from dsjit.ir.print_graph import op_name

__all__ = ["RunTimes", "StepTime", "TimedRun", "step_name", "step_sources", "time_steps"]

now: Final = time.monotonic_ns
"""The clock of native sequences, too."""

Ranges = Callable[[str], AbstractContextManager[Any]]
"""Makes a named range that another profiler sees."""

Nanoseconds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RunTimes:
    """One run of a Program, in ns of the monotonic clock.

    begin, end: of the run. begins, ends: of its steps, by number; -1 for a step that is not in the Program.
    """

    begin: int
    end: int
    begins: Nanoseconds
    ends: Nanoseconds


@dataclass(slots=True)
class _Layout:
    """Where each event of a run writes: a sequence of n steps has n + 1 timestamps, a library call two.

    sequences: position of each. calls: positions of library calls, in the order in which they run.
    begins, ends: positions by step.
    """

    sequences: dict[str, int] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    size: int = 0

    @classmethod
    def of(cls, program: Program, steps: Sequence[Step], native: Collection[Node]) -> _Layout:
        layout = cls()
        sequences = iter(program.sequences.items())
        left = 0
        for step in steps:
            is_native = isinstance(step.work, FusedKernel) or step.work.node in native
            if not is_native:
                layout.calls.append(layout.size)
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
    """Called as the `run` of `program`, which it stands in for; `on_run` is told the times of each run that returns.

    steps, native: what the Program was assembled from (see `codegen.assemble`).
    ranges: every step runs in a range of this kind. Its steps then run one by one, which takes longer.
    Reentrant, as the Program is.
    """

    def __init__(
        self,
        program: Program,
        steps: Sequence[Step],
        native: Collection[Node],
        on_run: Callable[[int, int, bytes], None],
        ranges: Ranges | None = None,
    ) -> None:
        self._program = program
        self._steps = steps
        self._layout = _Layout.of(program, steps, native)
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
            twin.restart()
            begin = now()
            outputs = twin.run(inputs, frame, threads)
            end = now()
        finally:
            self._idle.append(twin)
        self._on_run(begin, end, bytes(twin.stamps))
        return outputs

    def _names(self) -> list[str]:
        return [step_name(step) for step in self._steps]

    def times(self, begin: int, end: int, stamps: bytes) -> RunTimes:
        """What `on_run` was told, by step."""
        table = np.frombuffer(stamps, dtype=np.int64)
        return RunTimes(begin, end, table[self._begins], table[self._ends])


class _Twin:
    """The function of a Program with clocks bound to its names. For one run at a time."""

    __slots__ = ("_calls", "_positions", "run", "stamps")

    run: Run

    def __init__(self, program: Program, layout: _Layout, names: Sequence[str], ranges: Ranges | None) -> None:
        self.stamps: Any = (ctypes.c_int64 * max(layout.size, 1))()
        self._calls = layout.calls
        self._positions: Iterator[int] = iter(())
        address = ctypes.addressof(self.stamps)
        table = memoryview(self.stamps).cast("B").cast("q")
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
        for name, value in list(bound.items()):
            if name[0] == "f" and name[1:].isdigit():
                bound[name] = self._timed_call(value, table, labels, ranges)
        self.run = FunctionType(program.function.__code__, bound, "run")

    def restart(self) -> None:
        """Before each run."""
        self._positions = iter(self._calls)

    def _timed_call(
        self, function: Callable[..., Any], table: memoryview, labels: dict[int, str], ranges: Ranges | None
    ) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            position = next(self._positions)
            table[position] = now()
            result = function(*args, **kwargs)
            table[position + 1] = now()
            return result

        def ranged(*args: Any, **kwargs: Any) -> Any:
            position = next(self._positions)
            with ranges(labels[position]):  # type: ignore[misc]
                table[position] = now()
                result = function(*args, **kwargs)
                table[position + 1] = now()
            return result

        return timed if ranges is None else ranged


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
    runs: list[tuple[int, int, bytes]] = []
    timed = TimedRun(program, steps, native, lambda *run: runs.append(run))
    program.run = timed
    try:
        for _ in range(repeats + 1):
            program(inputs)
    finally:
        program.run = program.function
    found = [timed.times(*run) for run in itertools.islice(runs, 1, None)]
    taken = [run.ends - run.begins for run in found]
    return tuple(
        StepTime(step_name(step), step_sources(step), statistics.median(int(each[number]) for each in taken))
        for number, step in enumerate(steps)
    )
