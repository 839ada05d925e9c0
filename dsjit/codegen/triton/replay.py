"""Programs whose launches are recorded once and replayed: CUDA graphs, for calls whose time is the launches.

A recording holds addresses. The first call of a program runs as always; the second one is recorded, and tells which
inputs are where they were (parameters) and which are not. The former are read in place; when one of them has moved,
there is another recording, and after a few of these calls run as always. The latter are copied into memory that belongs
to the recording, before each replay. Results are copied out of such memory: the caller may keep them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import torch

from dsjit.codegen.placement import Step
from dsjit.codegen.triton.program import GpuProgram
from dsjit.fusion.planner import LibraryUnit
from dsjit.ir.graph import Graph
from dsjit.ops.properties import draws, is_dynamic
from dsjit.ops.strided import fresh_copy

__all__ = ["GraphRecorder", "Recording", "ReplayedProgram", "can_be_replayed"]

MOST_RECORDINGS: Final = 4
"""Of one program on one stream: each has memory of its own."""


class Recording(Protocol):
    """What a device was told to do, as `torch.cuda.CUDAGraph` holds it."""

    def replay(self) -> object:
        """Queue it all on the current stream."""
        ...


class GraphRecorder(Protocol):
    """Records what a function queues. Nothing of it runs."""

    def record(self, run: Callable[[], list[torch.Tensor]]) -> tuple[Recording, list[torch.Tensor]]:
        """The recording, and what `run` returned: tensors in memory that each replay fills. Raises RuntimeError for
        what cannot be recorded, as waiting for the device."""
        ...


def can_be_replayed(graph: Graph, steps: Sequence[Step]) -> bool:
    """Whether each run of the Program of these steps queues the same work: nothing draws random numbers, has sizes that
    data decide, or writes to what the caller owns."""
    called = [step.work.node for step in steps if isinstance(step.work, LibraryUnit)]
    return not graph.writes and not any(draws(node) or node.mutates or is_dynamic(node) for node in called)


@dataclass(slots=True)
class _Replay:
    """addresses: of inputs, None for those that are copied into `memory`. results: what each replay fills.
    program: owns the arena that the recording uses."""

    recording: Recording
    addresses: tuple[int | None, ...]
    memory: tuple[torch.Tensor | None, ...]
    results: list[torch.Tensor]
    program: GpuProgram

    def fits(self, addresses: Sequence[int]) -> bool:
        return all(own is None or own == given for own, given in zip(self.addresses, addresses, strict=True))


@dataclass(slots=True)
class _Stream:
    """earlier: the addresses of inputs in the call before. replays: the latest first. gave_up: calls run as always."""

    earlier: tuple[int, ...] | None = None
    replays: list[_Replay] = field(default_factory=list)
    gave_up: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True, weakref_slot=True)
class ReplayedProgram:
    """Called as a `GpuProgram`. program: what is recorded. streams: what there is for each stream, by its handle.

    paused: calls run as always, for as long as a profile runs.
    """

    program: GpuProgram
    recorder: GraphRecorder
    streams: dict[int, _Stream] = field(default_factory=dict)
    paused: bool = False

    def __call__(self, inputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        given = list(inputs)
        with self.program.device_guard():
            stream = self.streams.setdefault(self.program.current_stream(), _Stream())
            with stream.lock:
                replay = None if stream.gave_up or self.paused else self._replay(stream, given)
                if replay is not None:
                    for memory, tensor in zip(replay.memory, given, strict=True):
                        if memory is not None:
                            memory.copy_(tensor)
                    replay.recording.replay()
                    return [fresh_copy(result, result.stride()) for result in replay.results]
        return self.program(given)

    def _replay(self, stream: _Stream, given: Sequence[torch.Tensor]) -> _Replay | None:
        """What is to be replayed; None in the first call, and when nothing can be."""
        addresses = tuple([tensor.data_ptr() for tensor in given])
        for replay in stream.replays:
            if replay.fits(addresses):
                return replay
        earlier, stream.earlier = stream.earlier, addresses
        if earlier is None:
            return None
        if len(stream.replays) == MOST_RECORDINGS:
            stream.gave_up = True
            stream.replays.clear()
            return None
        # What moved once may move again.
        moving = {place for replay in stream.replays for place, own in enumerate(replay.addresses) if own is None}
        moving |= {place for place, (one, other) in enumerate(zip(earlier, addresses, strict=True)) if one != other}
        made = self._recorded(given, addresses, moving)
        if made is None:
            stream.gave_up = True
        else:
            stream.replays.insert(0, made)
        return made

    def _recorded(self, given: Sequence[torch.Tensor], addresses: Sequence[int], moving: set[int]) -> _Replay | None:
        if any(stride == 0 for place in moving for stride in given[place].stride()):
            return None  # elements that share memory cannot be copied into
        memory = tuple([
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) if place in moving else None
            for place, t in enumerate(given)
        ])  # fmt: skip
        inputs = [tensor if own is None else own for tensor, own in zip(given, memory, strict=True)]
        program = replace(self.program, streams={})
        try:
            recording, results = self.recorder.record(lambda: program(inputs))
        except RuntimeError:
            return None
        blocks = [tensor.untyped_storage().data_ptr() for tensor in (*inputs, *results)]
        if len(set(blocks[len(inputs) :])) < len(results) or set(blocks[len(inputs) :]) & set(blocks[: len(inputs)]):
            return None  # a copy would share memory with nothing
        kept = tuple([None if place in moving else address for place, address in enumerate(addresses)])
        return _Replay(recording, kept, memory, results, program)

    @property
    def source(self) -> str:
        return self.program.source

    @property
    def arena_bytes(self) -> int:
        return self.program.arena_bytes

    @property
    def intermediate_bytes(self) -> int:
        return self.program.intermediate_bytes
