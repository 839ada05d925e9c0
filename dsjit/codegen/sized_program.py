"""A Program for many shapes: one set of kernels, one source, and for each shape the numbers that it changes.

What a shape changes (extents, strides, the memory plan, the sizes that kernels and matrix products take) is a list of
polynomials in the open sizes. A shape that is met for the first time evaluates them, in some ten microseconds; nothing
is traced, compiled or linked.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any, Final

import torch

from dsjit.codegen.llvm.executor import Call
from dsjit.codegen.memory_plan import MemoryPlan, plan_memory
from dsjit.codegen.program import (
    ArenaTensor,
    Executor,
    Program,
    ProgramParts,
    SequenceForSizes,
    SequenceOfFrame,
    compile_source,
    link_planned,
)
from dsjit.ir.kernel import Kernel, SizeParam
from dsjit.ir.polynomial import Polynomial, PolynomialFit
from dsjit.ir.template import Fixed, Made, Mismatch, Template, TemplateMaker, compile_filling, fill

__all__ = ["KEPT_SHAPES", "KernelForSizes", "SizedProgram", "SizeSource", "kernels_for_sizes", "make_sized_program"]

KEPT_SHAPES: Final = 512
"""Shapes whose numbers are kept: as many as there may be numbers of rows that data select."""

NEAR: Final = 16
FAMILIAR: Final = 4
AHEAD: Final = 6
"""Counts that data decide (rows of an expert) lie close together. A new size that has so many FAMILIAR ones as NEAR is
filled in together with those up to AHEAD of it and behind: one by one, the work would take several times as long, as
its code and data are no longer in the caches when the next one comes."""

KEPT_BYTES: Final = 1 << 28
"""Memory that is kept for the next run, though the last one needed less than half of it."""


@dataclass(frozen=True, slots=True)
class SizeSource:
    """Where an open size is read: dimension `dim` of input number `number`."""

    number: int
    dim: int


@dataclass(frozen=True, slots=True)
class KernelForSizes:
    """A Kernel with open sizes, and what these are."""

    kernel: Kernel
    sizes: tuple[Polynomial, ...]


def kernels_for_sizes(
    columns: Sequence[Sequence[Kernel]], fit: PolynomialFit, typical: Sequence[int]
) -> list[KernelForSizes]:
    """columns: the Kernels at each point of `fit`. typical: sizes to expect. Raises Mismatch."""
    if any(len(column) != len(columns[0]) for column in columns):
        raise Mismatch("other sizes are fused into another number of kernels")
    found: list[KernelForSizes] = []
    for kernels in zip(*columns, strict=True):
        maker = TemplateMaker(fit)
        template = maker.make(kernels)
        params = tuple([SizeParam(f"n{number}", size.at(typical)) for size, number in maker.sizes.items()])
        kernel: Kernel = fill(template, params)
        found.append(KernelForSizes(replace(kernel, sizes=params), tuple(maker.sizes)))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Filling:
    """What one shape makes of a SizedProgram.

    names: what is behind the names of `run` that depend on sizes. sequences: what fills those of a frame.
    arena_tensors: with their byte offsets. plan: of the arena; key: tells plans apart.
    """

    names: tuple[Any, ...]
    sequences: tuple[Any, ...]
    arena_tensors: tuple[tuple[int, ArenaTensor], ...]
    plan: MemoryPlan[int]
    key: tuple[int, ...]


@dataclass(slots=True, eq=False)
class SizedFrame:
    """The private memory of one run, as a `program.Frame`, for all shapes of one memory plan.

    typed: the arena as elements of each dtype. sequences: native sequences, which are filled for one shape; filling:
        what they are filled with.
    """

    typed: Mapping[torch.dtype, torch.Tensor]
    buffer: Any
    table: memoryview
    address: int
    sequences: list[SequenceOfFrame]
    tensors: list[torch.Tensor] = field(default_factory=list)
    filling: Filling | None = None

    def fill(self, filling: Filling) -> None:
        """Make it one for this shape."""
        for sequence, own in zip(self.sequences, filling.sequences, strict=True):
            sequence.fill(own)
        self.tensors = [
            self.typed[spec.dtype].as_strided(spec.shape, spec.strides, offset // spec.dtype.itemsize)
            for offset, spec in filling.arena_tensors
        ]
        self.filling = filling


@dataclass(slots=True, eq=False)
class SharedMemory:
    """An arena in which one run after the other takes place. frames: by the keys of the memory plans."""

    arena: torch.Tensor
    frames: dict[tuple[int, ...], SizedFrame] = field(default_factory=dict)


@dataclass(slots=True)
class SizedProgram:
    """Called as a `Program`, with tensors of any shape that its guard admits.

    sources: where the open sizes are read. parts: at one choice of them. opened: names of `run` that depend on sizes.
    numbers: for open sizes, gives tensors in the arena, the bytes of buffers, what is behind `opened`, and the words of
    `sequences`; where one is None, calls are packed each time. whole: gives what is behind all names, and the calls of
    each sequence. plans: by the sizes of buffers, rounded up.
    example: the Program of the shape that it was made from. on_program: while it is set, each shape has a Program of
    its own, and it is told of a new one. memories: those that no run has at the moment.
    """

    sources: tuple[SizeSource, ...]
    parts: ProgramParts
    opened: tuple[str, ...]
    sequences: Mapping[str, SequenceForSizes | None]
    numbers: Callable[..., tuple[Any, ...]]
    whole: Callable[..., tuple[Any, ...]]
    function: FunctionType
    run: Callable[[Iterable[torch.Tensor], SizedFrame, int, tuple[Any, ...]], list[torch.Tensor]]
    plans: dict[tuple[int, ...], MemoryPlan[int]] = field(default_factory=dict)
    fillings: dict[tuple[int, ...], Filling] = field(default_factory=dict)
    programs: dict[tuple[int, ...], Program] = field(default_factory=dict)
    memories: list[SharedMemory] = field(default_factory=list)
    example: Program = field(init=False)
    on_program: Callable[[Program], None] | None = None

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return self.run_at(tuple([inputs[source.number].shape[source.dim] for source in self.sources]), inputs)

    def run_at(self, point: tuple[int, ...], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The same, when the open sizes are known: inputs need not tell them."""
        if self.on_program is not None:
            return self._observed(point, self.on_program)(inputs)
        filling = self.fillings.get(point)
        if filling is None:
            filling = self._fill(point)
            self._fill_around(point)
        memory = self._memory_for(filling.plan)
        frame = memory.frames.get(filling.key)
        if frame is None:
            frame = memory.frames[filling.key] = self._new_frame(filling, memory.arena)
        if frame.filling is not filling:
            frame.fill(filling)
        try:
            return self.run(inputs, frame, torch.get_num_threads(), filling.names)
        finally:
            self.memories.append(memory)

    def _memory_for(self, plan: MemoryPlan[int]) -> SharedMemory:
        """Memory that no other run has now: new memory is slow at first."""
        needed = max(plan.nbytes, 1)
        try:
            memory = self.memories.pop()
        except IndexError:  # another thread runs
            pass
        else:
            if needed <= memory.arena.numel() <= max(KEPT_BYTES, 2 * needed):
                return memory
            needed += needed // 128 * 64 if needed < KEPT_BYTES else 0
        return SharedMemory(torch.empty(needed, dtype=torch.uint8, device=self.parts.executor.device))

    def _fill(self, point: tuple[int, ...]) -> Filling:
        """The numbers of a shape that was not met lately."""
        arena_tensors, bytes_of_buffers, opened, words = self.numbers(*point)
        key = tuple([_rounded(nbytes) for nbytes in bytes_of_buffers])
        plan = self._plan(key)
        pack = self.parts.executor.pack
        sequences = [
            pack(self._calls(name, point)) if sequence is None else sequence.filled(mine)
            for (name, sequence), mine in zip(self.sequences.items(), words, strict=True)
        ]
        placed = tuple([(plan.offsets[spec.buffer] + spec.shift, spec) for spec in arena_tensors])
        if len(self.fillings) >= KEPT_SHAPES:
            self.fillings.pop(next(iter(self.fillings)), None)
        filling = self.fillings[point] = Filling(opened, tuple(sequences), placed, plan, key)
        return filling

    def _fill_around(self, point: tuple[int, ...]) -> None:
        """Fill in the sizes near this one, where more of them are likely to come."""
        if len(point) != 1:
            return
        (size,) = point
        known = [near for near in range(size - NEAR, size + NEAR + 1) if (near,) in self.fillings]
        if len(known) > FAMILIAR:
            for near in range(max(known[0], size - AHEAD), min(known[-1], size + AHEAD) + 1):
                if (near,) not in self.fillings:
                    self._fill((near,))

    def _new_frame(self, filling: Filling, arena: torch.Tensor) -> SizedFrame:
        parts = self.parts
        buffer = (ctypes.c_int64 * max(parts.slots, 1))()
        base = arena.data_ptr()
        for slot, number in parts.fixed:
            buffer[slot] = base + filling.plan.offsets[number]
        for slot, tensor in parts.constants:
            buffer[slot] = tensor.data_ptr()
        table = memoryview(buffer).cast("B").cast("q")
        sequences = [
            parts.executor.of_frame(own, parts.sequences[name])
            for name, own in zip(self.sequences, filling.sequences, strict=True)
        ]
        typed = {spec.dtype: arena.view(spec.dtype) for _, spec in filling.arena_tensors}
        return SizedFrame(typed, buffer, table, ctypes.addressof(buffer), sequences)

    def _observed(self, point: tuple[int, ...], tell: Callable[[Program], None]) -> Program:
        """The Program of this shape alone."""
        program = self.programs.get(point)
        if program is None:
            if len(self.programs) >= KEPT_SHAPES:
                self.programs.pop(next(iter(self.programs)), None)
            program = self.programs[point] = self.at(point)
            tell(program)
        return program

    def at(self, point: Sequence[int]) -> Program:
        """A Program for these open sizes alone."""
        arena_tensors, bytes_of_buffers, _, _ = self.numbers(*point)
        names, *calls = self.whole(*point)
        plan = self._plan(tuple([_rounded(nbytes) for nbytes in bytes_of_buffers]))
        sequences = {
            name: self.parts.executor.build(mine) for name, mine in zip(self.sequences, calls, strict=True)
        }  # fmt: skip
        every = dict(zip(self.parts.names, names, strict=True))
        parts = replace(self.parts, names=every, arena_tensors=arena_tensors)
        return link_planned(parts, self.function, plan, sequences)

    def _calls(self, name: str, point: Sequence[int]) -> tuple[Call, ...]:
        _, *calls = self.whole(*point)
        found: tuple[Call, ...] = dict(zip(self.sequences, calls, strict=True))[name]
        return found

    def _plan(self, sizes: tuple[int, ...]) -> MemoryPlan[int]:
        """Where buffers of these sizes lie."""
        plan = self.plans.get(sizes)
        if plan is None:
            if len(self.plans) >= KEPT_SHAPES:
                self.plans.clear()
                self.memories.clear()  # with the frames of these plans
            buffers = [replace(buffer, nbytes=n) for buffer, n in zip(self.parts.buffers, sizes, strict=True)]
            plan = self.plans[sizes] = plan_memory(buffers)
        return plan

    def apart(self) -> SizedProgram:
        """The same, with memory of its own."""
        found = replace(self, programs={}, memories=[])
        found.example = self.example.apart()
        return found

    @property
    def source(self) -> str:
        """The text of `run`, the same for every shape."""
        sizes = ", ".join(f"s{number} = size {s.dim} of a{s.number}" for number, s in enumerate(self.sources))
        return f"# open sizes: {sizes}\n{self.parts.source}"

    @property
    def arena_bytes(self) -> int:
        """Of the shape that it was made from."""
        return self.example.arena_bytes

    @property
    def intermediate_bytes(self) -> int:
        """Of the shape that it was made from."""
        return self.example.intermediate_bytes


def make_sized_program(
    parts: Sequence[ProgramParts], fit: PolynomialFit, sources: tuple[SizeSource, ...], typical: Sequence[int]
) -> SizedProgram:
    """parts: at the points of `fit`, assembled with open sizes. Raises Mismatch."""
    maker = TemplateMaker(fit)
    first = parts[0]
    maker.make([(each.source, each.slots, each.fixed, each.constants) for each in parts])
    maker.make([tuple([replace(buffer, nbytes=0) for buffer in each.buffers]) for each in parts])
    if maker.sizes:
        raise Mismatch("other sizes are placed otherwise")
    names, sequences = tuple(first.names), tuple(first.sequences)
    if any((tuple(each.names), tuple(each.sequences)) != (names, sequences) for each in parts):
        raise Mismatch("other names are used for other sizes")
    behind = maker.make_mapping([each.names for each in parts])
    opened = tuple([name for name, template in behind.items() if not isinstance(template, Fixed)])
    executor = first.executor
    encoded = {name: _encoded(maker, executor, [each.sequences[name] for each in parts]) for name in sequences}
    calls = [maker.make([each.sequences[name] for each in parts]) for name in sequences]
    templates = [
        maker.make([each.arena_tensors for each in parts]),
        maker.make([tuple([buffer.nbytes for buffer in each.buffers]) for each in parts]),
        Made(tuple, tuple([behind[name] for name in opened])),
        Made(tuple, tuple([words for _, words in encoded.values()])),
    ]
    polynomials, count = tuple(maker.sizes), len(typical)
    function = compile_source(_with_sizes(first.source, opened, sequences))
    fixed = {name: template.value for name, template in behind.items() if isinstance(template, Fixed)}
    program = SizedProgram(
        sources,
        first,
        opened,
        {name: sequence for name, (sequence, _) in encoded.items()},
        compile_filling(templates, polynomials, count),
        compile_filling([Made(tuple, tuple(behind.values())), *calls], polynomials, count),
        compile_source(first.source),
        FunctionType(function.__code__, {**function.__globals__, **fixed}, "run"),
    )
    program.example = program.at(typical)
    return program


def _with_sizes(source: str, opened: Sequence[str], sequences: Sequence[str]) -> str:
    """The source of `run(inputs, frame, threads, sizes)`, which takes from there what depends on sizes, and native
    sequences from its frame."""
    header, body = source.split("\n", 1)
    lines = [header.replace("threads)", "threads, sizes)")]
    for names, whole in ((opened, "sizes"), (sequences, "frame.sequences")):
        if names:
            lines.append(f"    {', '.join(names)}, = {whole}")
    return "\n".join([*lines, body])


def _encoded(
    maker: TemplateMaker, executor: Executor, columns: Sequence[tuple[Call, ...]]
) -> tuple[SequenceForSizes | None, Template]:
    """A native sequence, whose calls these are at each point, and its words."""
    opened = executor.for_sizes(columns[0])
    if opened is not None:
        try:
            return opened, maker.make([opened.words(calls) for calls in columns])
        except Mismatch:  # the number of threads of a product, say
            pass
    return None, Fixed(())


def _rounded(nbytes: int) -> int:
    """Up to a number of which only the first three bits are set, so that near sizes have the same memory plan."""
    low = max(nbytes.bit_length() - 3, 0)
    return -(-nbytes >> low) << low if nbytes else 0
