"""Programs whose launches are recorded once and replayed: CUDA graphs, for calls whose time is the launches.

A recording holds addresses. The first call of a program runs as always; the second one is recorded, and tells which
inputs are where they were (parameters) and which are not. The former are read in place; when one of them has moved,
there is another recording, and after a few of these calls run as always. The latter are copied into memory that belongs
to the recording, before each replay. Results are copied out of such memory: the caller may keep them.

Some are never copied. What the program writes has to be written where it is, and what a forward keeps for its backward
is large: there the backward waits until the forward, which is recorded earlier, puts it at the same place twice. The
forward hands out its own memory for it, and is not replayed as long as anybody holds that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch.autograd.graph import increment_version

from dsjit.codegen.low_memory import LowMemory
from dsjit.codegen.placement import Step
from dsjit.codegen.program import handed_over
from dsjit.codegen.templates.attention import ATTENTION_OPS
from dsjit.codegen.triton.program import GpuProgram
from dsjit.fusion.planner import LibraryUnit
from dsjit.ir.graph import Graph, Node
from dsjit.ops.properties import draws, is_dynamic

__all__ = ["GraphRecorder", "Recording", "ReplayedProgram", "can_be_replayed", "replayed"]

MOST_RECORDINGS: Final = 4
"""Of one program on one stream: each has memory of its own."""


class Recording(Protocol):
    """What a device was told to do, as `torch.cuda.CUDAGraph` holds it."""

    def replay(self) -> object:
        """Queue it all on the current stream."""
        ...


class GraphRecorder(Protocol):
    """Records what a function queues. Nothing of it runs."""

    def is_busy(self) -> bool:
        """Whether the current stream is being recorded already: by the caller, say."""
        ...

    def record(self, run: Callable[[], list[torch.Tensor]]) -> tuple[Recording, list[torch.Tensor]]:
        """The recording, and what `run` returned: tensors in memory that each replay fills. Raises RuntimeError for
        what cannot be recorded, as waiting for the device, and what `run` raises."""
        ...


def can_be_replayed(graph: Graph, steps: Sequence[Step], device: torch.device) -> bool:
    """Whether each run of the Program of these steps queues the same work on the device: nothing draws random numbers,
    has sizes that data decide, or has to do with what is in the host's memory, which is read while it is recorded."""
    called = [step.work.node for step in steps if isinstance(step.work, LibraryUnit)]
    if any(draws(node) or node.mutates or is_dynamic(node) for node in called):
        return False
    read = [value for node in graph.nodes if not _drops_nothing(node) for value in node.inputs()]
    given = [value for write in graph.writes for value in (write.target, write.value)]
    seen = {value for value in (*read, *given, *graph.outputs) if value not in graph.constants}
    unread = {value for node in graph.nodes if _drops_nothing(node) for value in (*node.inputs(), *node.outputs)}
    return all(value.type.device == device for value in seen - unread)


def _drops_nothing(node: Node) -> bool:
    """Attention without dropout: the state of the generator that it takes or returns, in the host's memory, is
    nobody's."""
    return node.op in ATTENTION_OPS and not draws(node)


@dataclass(slots=True)
class _Replay:
    """addresses: of inputs, None for those that are copied into `memory`. results: what each replay fills.
    lent: of them, the numbers of those that are handed out as they are, and how many hold each while nobody else does.
    program: owns the arena that the recording uses."""

    recording: Recording
    addresses: tuple[int | None, ...]
    memory: tuple[torch.Tensor | None, ...]
    results: list[torch.Tensor]
    lent: dict[int, int]
    program: GpuProgram

    def fits(self, addresses: Sequence[int]) -> bool:
        return all(own is None or own == given for own, given in zip(self.addresses, addresses, strict=True))

    def is_free(self) -> bool:
        """Whether nobody holds what was handed out."""
        return all(_holders(self.results[number]) == alone for number, alone in self.lent.items())

    def run(self, given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results, given the inputs. Whatever may fail for want of memory comes before the replay."""
        found = [
            result.detach() if number in self.lent else _room_for(result) for number, result in enumerate(self.results)
        ]
        for memory, tensor in zip(self.memory, given, strict=True):
            if memory is not None:
                memory.copy_(tensor)
        self.recording.replay()
        for number, copy in enumerate(found):
            if number not in self.lent:
                copy.copy_(self.results[number])
        return found


def _room_for(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _holders(tensor: torch.Tensor) -> int:
    """How many tensors there are on its memory, and what else holds it."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


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

    steady: numbers of the inputs that are never copied. counted: of those of them that are written to, as autograd
        counts it. lent: numbers of the results that are handed out as they are, to a caller who writes to none.
    paused: calls run as always, for as long as a profile runs.
    """

    program: GpuProgram
    recorder: GraphRecorder
    steady: frozenset[int] = frozenset()
    counted: tuple[int, ...] = ()
    lent: frozenset[int] = frozenset()
    streams: dict[int, _Stream] = field(default_factory=dict)
    paused: bool = False

    def __call__(
        self,
        inputs: Iterable[torch.Tensor],
        unrecorded: Callable[[Iterable[torch.Tensor]], list[torch.Tensor]] | None = None,
    ) -> list[torch.Tensor]:
        """unrecorded: what runs when nothing is replayed; `program` by default."""
        given = list(inputs)
        with self.program.device_guard():
            stream = self.streams.setdefault(self.program.current_stream(), _Stream())
            if not (stream.gave_up or self.paused or self.recorder.is_busy()):
                with stream.lock:
                    replay = self._replay(stream, given)
                    if replay is not None:
                        found = replay.run(given)
                        increment_version([t for number in self.counted if not (t := given[number]).is_inference()])
                        return found
        return (self.program if unrecorded is None else unrecorded)(handed_over(given))

    def _replay(self, stream: _Stream, given: Sequence[torch.Tensor]) -> _Replay | None:
        """What is to be replayed; None in the first call, and when nothing can be."""
        addresses = tuple([tensor.data_ptr() for tensor in given])
        fitting = [replay for replay in stream.replays if replay.fits(addresses)]
        for replay in fitting:
            if replay.is_free():
                return replay
        earlier, stream.earlier = stream.earlier, addresses
        if earlier is None:
            return None
        moved = {place for place, (one, other) in enumerate(zip(earlier, addresses, strict=True)) if one != other}
        if not moved.isdisjoint(self.steady):
            return None
        if len(stream.replays) == MOST_RECORDINGS:
            if not fitting:
                stream.gave_up = True
                stream.replays.clear()
            return None
        # What moved once may move again.
        moved |= {place for replay in stream.replays for place, own in enumerate(replay.addresses) if own is None}
        made = self._recorded(given, addresses, moved)
        if made is None:
            stream.gave_up = True
        else:
            stream.replays.insert(0, made)
        return made

    def _recorded(self, given: Sequence[torch.Tensor], addresses: Sequence[int], moving: set[int]) -> _Replay | None:
        if any(stride == 0 for place in moving for stride in given[place].stride()):
            return None  # elements that share memory cannot be copied into
        memory = tuple([
            _room_for(tensor) if place in moving else None for place, tensor in enumerate(given)
        ])  # fmt: skip
        inputs = [tensor if own is None else own for tensor, own in zip(given, memory, strict=True)]
        program = self.program.apart()
        try:
            recording, results = self.recorder.record(lambda: program(inputs))
        except Exception:  # what cannot run raises it again when it runs as always
            return None
        blocks = [tensor.untyped_storage().data_ptr() for tensor in (*inputs, *results)]
        if len(set(blocks[len(inputs) :])) < len(results) or set(blocks[len(inputs) :]) & set(blocks[: len(inputs)]):
            return None  # a copy would share memory with nothing
        kept = tuple([None if place in moving else address for place, address in enumerate(addresses)])
        lent = {number: _holders(results[number]) for number in self.lent}
        return _Replay(recording, kept, memory, results, lent, program)

    @property
    def source(self) -> str:
        return self.program.source

    @property
    def arena_bytes(self) -> int:
        return self.program.arena_bytes

    @property
    def intermediate_bytes(self) -> int:
        return self.program.intermediate_bytes


def replayed(
    program: GpuProgram, recorder: GraphRecorder, graph: Graph, low_memory: LowMemory | None
) -> ReplayedProgram:
    """graph, low_memory: of the program."""
    way = LowMemory() if low_memory is None else low_memory
    numbers = {value: number for number, value in enumerate(graph.inputs)}
    written = [numbers[write.target] for write in graph.writes]
    counted = tuple([number for number, write in zip(written, graph.writes, strict=True) if write.counted])
    return ReplayedProgram(program, recorder, way.released | frozenset(written), counted, way.handed_on)
