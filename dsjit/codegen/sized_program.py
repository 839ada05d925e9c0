"""A Program for many shapes: one set of kernels, one source, and for each shape that is met a Program made of them.

What a shape changes (extents, strides, the memory plan, the sizes that kernels and matrix products take) is a list of
polynomials in the open sizes. A shape that is met for the first time evaluates them; nothing is traced or compiled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import FunctionType
from typing import Any, Final

import torch

from dsjit.codegen.llvm.executor import Call, OpenSequence
from dsjit.codegen.memory_plan import MemoryPlan, plan_memory
from dsjit.codegen.program import CPU_EXECUTOR, Frame, Program, ProgramParts, compile_source, link_planned
from dsjit.ir.kernel import Kernel, SizeParam
from dsjit.ir.polynomial import Polynomial, PolynomialFit
from dsjit.ir.template import Fixed, Made, Mismatch, Template, TemplateMaker, compile_filling, fill

__all__ = ["KEPT_SHAPES", "KernelForSizes", "SizedProgram", "SizeSource", "kernels_for_sizes", "make_sized_program"]

KEPT_SHAPES: Final = 512
"""Shapes whose Programs are kept: as many as there may be numbers of rows that data select."""

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


@dataclass(slots=True, eq=False)
class SharedMemory:
    """An arena in which one run after the other takes place. frames: by the sizes of the Programs."""

    arena: torch.Tensor
    frames: dict[tuple[int, ...], Frame] = field(default_factory=dict)


@dataclass(slots=True)
class SizedProgram:
    """Called as a `Program`, with tensors of any shape that its guard admits.

    sources: where the open sizes are read. parts: at one choice of them. filling: for others, gives what depends on
    them: tensors in the arena, the bytes of buffers, what is behind `names`, and the words of `sequences`, whose calls
    `calls` gives; where there is no OpenSequence, they are encoded each time. plans: by the sizes of buffers, rounded
    up.
    example: the Program of the shape that it was made from. on_program: is told each Program that is made for a shape.
    memories: those that no run has at the moment.
    """

    sources: tuple[SizeSource, ...]
    parts: ProgramParts
    names: tuple[str, ...]
    sequences: Mapping[str, OpenSequence | None]
    filling: Callable[..., tuple[Any, ...]]
    calls: Callable[..., tuple[Any, ...]]
    function: FunctionType
    plans: dict[tuple[int, ...], MemoryPlan[int]] = field(default_factory=dict)
    programs: OrderedDict[tuple[int, ...], Program] = field(default_factory=OrderedDict)
    memories: list[SharedMemory] = field(default_factory=list)
    example: Program = field(init=False)
    on_program: Callable[[Program], None] | None = None

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return self.run_at(tuple([inputs[source.number].shape[source.dim] for source in self.sources]), inputs)

    def run_at(self, point: tuple[int, ...], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The same, when the open sizes are known: inputs need not tell them."""
        program = self.programs.get(point)
        if program is None:
            self._make_room()
            program = self.programs[point] = self.at(point)
            if self.on_program is not None:
                self.on_program(program)
        memory = self._memory_for(program)
        frame = memory.frames.get(point)
        if frame is None:
            frame = memory.frames[point] = program.new_frame(memory.arena)
        try:
            return program.run(inputs, frame, torch.get_num_threads())
        finally:
            self.memories.append(memory)

    def _memory_for(self, program: Program) -> SharedMemory:
        """Memory that no other run has now: new memory is slow at first."""
        needed = max(program.arena_bytes, 1)
        try:
            memory = self.memories.pop()
        except IndexError:  # another thread runs
            pass
        else:
            if needed <= memory.arena.numel() <= max(KEPT_BYTES, 2 * needed):
                return memory
            needed += needed // 128 * 64 if needed < KEPT_BYTES else 0
        return SharedMemory(torch.empty(needed, dtype=torch.uint8, device=program.device))

    def _make_room(self) -> None:
        if len(self.programs) >= KEPT_SHAPES:
            oldest, _ = self.programs.popitem(last=False)
            for memory in list(self.memories):
                memory.frames.pop(oldest, None)

    def at(self, point: Sequence[int]) -> Program:
        """The Program for these open sizes."""
        arena_tensors, bytes_of_buffers, names, words = self.filling(*point)
        plan = self._plan(tuple([_rounded(nbytes) for nbytes in bytes_of_buffers]))
        sequences = {
            name: self.parts.executor.build(self._calls(name, point)) if opened is None
            else opened.at(mine, partial(self._calls, name, tuple(point)))
            for (name, opened), mine in zip(self.sequences.items(), words, strict=True)
        }  # fmt: skip
        parts = replace(self.parts, names=dict(zip(self.names, names, strict=True)), arena_tensors=arena_tensors)
        return link_planned(parts, self.function, plan, sequences)

    def _calls(self, name: str, point: Sequence[int]) -> tuple[Call, ...]:
        calls: tuple[Call, ...] = dict(zip(self.sequences, self.calls(*point), strict=True))[name]
        return calls

    def _plan(self, sizes: tuple[int, ...]) -> MemoryPlan[int]:
        """Where buffers of these sizes lie."""
        plan = self.plans.get(sizes)
        if plan is None:
            if len(self.plans) >= KEPT_SHAPES:
                self.plans.clear()
            buffers = [replace(buffer, nbytes=n) for buffer, n in zip(self.parts.buffers, sizes, strict=True)]
            plan = self.plans[sizes] = plan_memory(buffers)
        return plan

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
    encoded = {name: _encoded(maker, [each.sequences[name] for each in parts], first) for name in sequences}
    calls = [maker.make([each.sequences[name] for each in parts]) for name in sequences]
    templates = [
        maker.make([each.arena_tensors for each in parts]),
        maker.make([tuple([buffer.nbytes for buffer in each.buffers]) for each in parts]),
        maker.make([tuple(each.names.values()) for each in parts]),
        Made(tuple, tuple([words for _, words in encoded.values()])),
    ]
    polynomials, count = tuple(maker.sizes), len(typical)
    program = SizedProgram(
        sources,
        first,
        names,
        {name: opened for name, (opened, _) in encoded.items()},
        compile_filling(templates, polynomials, count),
        compile_filling(calls, polynomials, count),
        compile_source(first.source),
    )
    program.example = program.at(typical)
    return program


def _encoded(
    maker: TemplateMaker, columns: Sequence[tuple[Call, ...]], parts: ProgramParts
) -> tuple[OpenSequence | None, Template]:
    """A native sequence, whose calls these are at each point, and its words."""
    opened = OpenSequence.of(columns[0]) if parts.executor is CPU_EXECUTOR else None
    if opened is not None:
        try:
            return opened, maker.make([opened.words(calls) for calls in columns])
        except Mismatch:  # the number of threads of a product, say
            pass
    return None, Fixed(())


def _rounded(nbytes: int) -> int:
    """Up to a number of which only the first four bits are set, so that near sizes have the same memory plan."""
    low = max(nbytes.bit_length() - 4, 0)
    return -(-nbytes >> low) << low if nbytes else 0
