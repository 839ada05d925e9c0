"""Times the steps of a Program on a GPU, by events on its stream.

A GPU runs what it is given later, so a clock of the host's sees nothing of it. Between two steps an event is recorded,
which the GPU stamps when it gets there; nobody waits for it. What the stamps are is asked later, for many runs at once
("CUDA C++ Programming Guide": Events).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from types import FunctionType
from typing import Any

import numpy as np
import torch

from dsjit.codegen.placement import Step
from dsjit.codegen.program import Frame, Program
from dsjit.codegen.triton.launch import build_launches
from dsjit.codegen.triton.program import DeviceEvent
from dsjit.ir.graph import Node
from dsjit.profiler.timing import Layout, RawRun, RunTimes, now

__all__ = ["DeviceTimedRun"]

Launch = Callable[[int, int], None]


class DeviceTimedRun:
    """Called as the `run` of `program`, which it stands in for; `on_run` is told of each run that returns, with host
    times and the events of the run. steps, native: what the Program was assembled from. Reentrant."""

    on_device = True

    def __init__(
        self,
        program: Program,
        steps: Sequence[Step],
        native: Collection[Node],
        on_run: Callable[[RawRun], None],
        new_event: Callable[[], DeviceEvent],
    ) -> None:
        self._program = program
        self._layout = Layout.of(program, steps, native)
        self._begins = np.array(self._layout.begins, dtype=np.int64)
        self._ends = np.array(self._layout.ends, dtype=np.int64)
        self._on_run = on_run
        self._new_event = new_event
        self._parts = {
            name: [build_launches((call,)).run for call in sequence.calls]
            for name, sequence in program.sequences.items()
        }

    def __call__(self, inputs: Iterable[torch.Tensor], frame: Frame, threads: int) -> list[torch.Tensor]:
        events = [self._new_event() for _ in range(self._layout.size)]
        begin = now()
        outputs: list[torch.Tensor] = self._function(events)(inputs, frame, threads)
        self._on_run((begin, now(), b"", events))
        return outputs

    def _function(self, events: Sequence[DeviceEvent]) -> FunctionType:
        """`run`, recording these events. Only queueing is made slower by it."""
        bound = dict(self._program.function.__globals__)
        calls = iter(self._layout.calls)
        for name, position in self._layout.sequences.items():
            bound[name] = _recorded_sequence(self._parts[name], events[position:])
        for name, value in list(bound.items()):
            if name[0] == "f" and name[1:].isdigit():
                bound[name] = _recorded_call(value, calls, events)
        return FunctionType(self._program.function.__code__, bound, "run")

    def times(self, runs: Sequence[RawRun]) -> RunTimes:
        """What `on_run` was told, by step; waits for the last run. A run begins when the host said so, and takes as
        long as the GPU took from its first event to its last."""
        size = self._layout.size
        table = np.zeros((len(runs), size), dtype=np.int64)
        if size:
            runs[-1][3][-1].synchronize()
        for row, (begin, _, _, events) in zip(table, runs, strict=True):
            row[:] = [begin + round(1e6 * events[0].elapsed_time(event)) for event in events]
        begins = np.array([run[0] for run in runs], dtype=np.int64)
        ends = table[:, -1] if size else begins
        return RunTimes(begins, ends, table[:, self._begins], table[:, self._ends])


def _recorded_sequence(parts: Sequence[Launch], events: Sequence[DeviceEvent]) -> Launch:
    def recorded(address: int, threads: int) -> None:
        events[0].record()
        for number, part in enumerate(parts, 1):
            part(address, threads)
            events[number].record()

    return recorded


def _recorded_call(function: Callable[..., Any], positions: Any, events: Sequence[DeviceEvent]) -> Callable[..., Any]:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        events[next(positions)].record()
        result = function(*args, **kwargs)
        events[next(positions)].record()
        return result

    return recorded
