"""A Program: what runs when a compiled function is called.

The steps of a Program are native sequences (kernels and matrix products, run back to back without Python) and
library calls. `codegen.assemble` prints them as one flat Python function, `run(inputs, frame, threads)`; a `Frame`
holds what one run needs for itself: the arena, the tensors in it, and the table of addresses that kernels read.

`ProgramParts` is a Program before its memory is planned and its calls are encoded, which is data all through; `link`
does these last steps.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from types import FunctionType
from typing import Any, Final, Protocol, TypeAlias

import torch

from dsjit.codegen.llvm.executor import Call, FrameSequence, OpenSequence, StepSequence, build_sequence, packed
from dsjit.codegen.memory_plan import Lifetime, MemoryPlan, check_plan, plan_memory
from dsjit.codegen.placement import Overwrites
from dsjit.errors import VerificationError

__all__ = [
    "CPU_EXECUTOR", "ArenaTensor", "Executor", "Frame", "GuestProgram", "Program", "ProgramParts", "Run",
    "SequenceForSizes", "SequenceOfFrame", "address_writer", "compile_source", "handed_over", "link", "link_planned",
]  # fmt: skip


class SequenceForSizes(Protocol):
    """What the calls of a sequence have in common for many sizes."""

    def words(self, calls: tuple[Call, ...]) -> tuple[int, ...]:
        """The integers in which equal calls differ."""
        ...

    def filled(self, words: tuple[int, ...]) -> Any:
        """What a frame's sequence is filled with, for calls of these words."""
        ...


class SequenceOfFrame(Protocol):
    """A sequence that is filled anew for other sizes. Called as `StepSequence.run`."""

    def fill(self, filling: Any, /) -> None: ...

    def __call__(self, table: int, threads: int, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Executor:
    """What runs the kernels of a Program.

    device: where their memory is. build: encodes the calls of a sequence.
    overwrites: what a kernel may write over.

    For Programs of many sizes: for_sizes: what calls have in common, None when they have to be packed for each size.
    pack: what `SequenceForSizes.filled` gives, from the calls. of_frame: a sequence, filled with that, of such calls.
    """

    device: torch.device
    build: Callable[[Sequence[Call]], StepSequence]
    overwrites: Overwrites
    for_sizes: Callable[[tuple[Call, ...]], SequenceForSizes | None]
    pack: Callable[[Sequence[Call]], Any]
    of_frame: Callable[[Any, tuple[Call, ...]], SequenceOfFrame]


CPU_EXECUTOR: Final = Executor(
    torch.device("cpu"), build_sequence, Overwrites(), for_sizes=OpenSequence.of, pack=packed, of_frame=FrameSequence
)


@dataclass(frozen=True, slots=True)
class ArenaTensor:
    """A tensor in the arena: `shift` bytes into buffer number `buffer`; sizes and strides in elements."""

    buffer: int
    shift: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ProgramParts:
    """source: the text of `run`. names: what it refers to; sequences: the native sequences among that, by name.

    slots: number of entries in the table of addresses; `fixed` gives those that are buffers in the arena, as
        (slot, buffer), and `constants` as (slot, tensor). buffers: in the arena.
    executor: where the Program runs.
    """

    source: str
    names: Mapping[str, Any]
    sequences: Mapping[str, tuple[Call, ...]]
    slots: int
    fixed: tuple[tuple[int, int], ...]
    constants: tuple[tuple[int, torch.Tensor], ...]
    arena_tensors: tuple[ArenaTensor, ...]
    buffers: tuple[Lifetime[int], ...]
    executor: Executor = CPU_EXECUTOR


@dataclass(slots=True)
class Frame:
    """The private memory of one run of a Program.

    arena: bytes. tensors: what library calls read and write there. table: addresses by slot, as a `memoryview` of
    int64 over `buffer`. address: where the table lies. fixed: slots of buffers in the arena, with their offsets.
    base: the address of the arena that the table is for; -1 of none yet, as that of an arena without memory is 0.
    guests: the frames of other Programs in the same arena.
    """

    arena: torch.Tensor
    tensors: list[torch.Tensor]
    buffer: Any
    table: memoryview
    address: int
    fixed: tuple[tuple[int, int], ...] = ()
    base: int = -1
    guests: list[tuple[Program, Frame]] = field(default_factory=list)

    def release(self) -> None:
        """Let go of the arena's memory, until the next run."""
        self.arena.untyped_storage().resize_(0)

    def settle(self) -> None:
        """Take memory for the arena, if it has none, and note where it is."""
        storage = self.arena.untyped_storage()
        if storage.nbytes() == 0:
            storage.resize_(self.arena.numel())
        self.base = self.arena.data_ptr()
        for slot, offset in self.fixed:
            self.table[slot] = self.base + offset


Run: TypeAlias = Callable[[Iterable[torch.Tensor], Frame, int], list[torch.Tensor]]


@dataclass(slots=True)
class Program:
    """A compiled Graph.

    run: `run(inputs, frame, threads)` returns the output tensors.
    source: the text of `run`, for reading.
    function: `run` as it was linked, whatever stands in for it. sequences: its native sequences, by the names that it
        calls them, in the order in which they run.
    slots: number of entries in the table of addresses; `fixed` gives those that never change within a frame, as
        (slot, byte offset in the arena), and `constants` as (slot, tensor).
    arena_tensors: with their byte offsets.
    arena_bytes: size of the arena. intermediate_bytes: sum of the buffers that share it. device: of the arena.
    """

    run: Run
    source: str
    function: FunctionType
    sequences: Mapping[str, StepSequence]
    slots: int
    fixed: tuple[tuple[int, int], ...]
    constants: tuple[tuple[int, torch.Tensor], ...]
    arena_tensors: tuple[tuple[int, ArenaTensor], ...]
    arena_bytes: int
    intermediate_bytes: int
    device: torch.device
    frames: list[Frame] = field(default_factory=list)

    def __call__(self, inputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Run on tensors of exactly the types that the Graph's inputs have. Reentrant: each run takes a frame."""
        try:
            frame = self.frames.pop()
        except IndexError:
            arena = torch.empty(max(self.arena_bytes, 1), dtype=torch.uint8, device=self.device)
            frame = self.new_frame(arena)
        try:
            if frame.arena.data_ptr() != frame.base:
                frame.settle()
            return self.run(inputs, frame, torch.get_num_threads())
        finally:
            self.frames.append(frame)

    def apart(self) -> Program:
        """The same, with memory of its own."""
        return replace(self, frames=[])

    def new_frame(self, arena: torch.Tensor) -> Frame:
        """A frame in this memory, of `arena_bytes` or more."""
        buffer = (ctypes.c_int64 * max(self.slots, 1))()
        for slot, tensor in self.constants:
            buffer[slot] = tensor.data_ptr()
        table = memoryview(buffer).cast("B").cast("q")
        typed = {dtype: arena.view(dtype) for dtype in {spec.dtype for _, spec in self.arena_tensors}}
        tensors = [
            torch.as_strided(typed[spec.dtype], spec.shape, spec.strides, offset // spec.dtype.itemsize)
            for offset, spec in self.arena_tensors
        ]
        return Frame(arena, tensors, buffer, table, ctypes.addressof(buffer), self.fixed)


@dataclass(frozen=True, slots=True)
class GuestProgram:
    """`program`, run in the arenas of `host`: for two Programs of which one runs after the other."""

    program: Program
    host: Program

    def __call__(self, inputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """As `Program.__call__`."""
        try:
            frame = self.host.frames.pop()
        except IndexError:  # the host has not run yet, or runs in another thread
            frame = None
        if frame is None or frame.arena.numel() < self.program.arena_bytes:
            del frame  # its memory is free for the larger arena
            size = max(self.program.arena_bytes, self.host.arena_bytes, 1)
            frame = self.host.new_frame(torch.empty(size, dtype=torch.uint8, device=self.host.device))
        own = next((guest for program, guest in frame.guests if program is self.program), None)
        if own is None:
            own = self.program.new_frame(frame.arena)
            frame.guests.append((self.program, own))
        try:
            if own.arena.data_ptr() != own.base:
                own.settle()
            return self.program.run(inputs, own, torch.get_num_threads())
        finally:
            self.host.frames.append(frame)


def handed_over(tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The tensors, one by one; the list is emptied, and who takes them is then the only one to hold them."""
    tensors.reverse()
    while tensors:
        yield tensors.pop()


def compile_source(source: str) -> FunctionType:
    """The function `run` of a Program's source, without the names that it refers to."""
    namespace: dict[str, Any] = {}
    exec(compile(source, "<dsjit program>", "exec"), namespace)
    function: FunctionType = namespace["run"]
    return function


def link(parts: ProgramParts, check: bool = False) -> Program:
    """The Program. check: raise VerificationError when buffers that are alive together overlap in the arena."""
    plan = plan_memory(parts.buffers)
    for one, other in check_plan(parts.buffers, plan) if check else ():
        raise VerificationError(f"buffers {one} and {other} of the arena are alive together, and overlap")
    sequences = {name: parts.executor.build(calls) for name, calls in parts.sequences.items()}
    return link_planned(parts, compile_source(parts.source), plan, sequences)


def link_planned(
    parts: ProgramParts, function: FunctionType, plan: MemoryPlan[int], sequences: Mapping[str, StepSequence]
) -> Program:
    """The Program of a memory plan and encoded sequences. function: the compiled source."""
    names = {**parts.names, **{name: sequence.run for name, sequence in sequences.items()}}
    run = FunctionType(function.__code__, {**function.__globals__, **names}, "run")
    return Program(
        run=run,
        source=parts.source,
        function=run,
        sequences=sequences,
        slots=parts.slots,
        fixed=tuple([(slot, plan.offsets[buffer]) for slot, buffer in parts.fixed]),
        constants=parts.constants,
        arena_tensors=tuple([(plan.offsets[spec.buffer] + spec.shift, spec) for spec in parts.arena_tensors]),
        arena_bytes=plan.nbytes,
        intermediate_bytes=plan.total,
        device=parts.executor.device,
    )


@cache
def address_writer(count: int) -> Any:
    """Writes so many addresses into a buffer. One object for each number: names of equal Programs are equal."""
    return struct.Struct(f"{count}q").pack_into
