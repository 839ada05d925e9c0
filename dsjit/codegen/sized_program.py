"""A Program for many shapes: one set of kernels, one source, and for each shape that is met a Program made of them.

What a shape changes (extents, strides, the memory plan, the sizes that kernels and matrix products take) is a list of
polynomials in the open sizes. A shape that is met for the first time evaluates them; nothing is traced or compiled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Final

import torch

from dsjit.codegen.program import Program, ProgramParts, compile_source, link
from dsjit.ir.kernel import Kernel, SizeParam
from dsjit.ir.polynomial import Polynomial, PolynomialFit
from dsjit.ir.template import Mismatch, Template, TemplateMaker, fill

__all__ = ["KEPT_SHAPES", "KernelForSizes", "SizedProgram", "SizeSource", "kernels_for_sizes", "make_sized_program"]

KEPT_SHAPES: Final = 512
"""Shapes whose Programs are kept: as many as there may be numbers of rows that data select."""

KEPT_BYTES: Final = 1 << 28
"""Memory that the Programs of other shapes than the last one may keep for their next run."""


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


@dataclass(slots=True)
class SizedProgram:
    """Called as a `Program`, with tensors of any shape that its guard admits.

    sources: where the open sizes are read. sizes: the polynomials that the templates refer to.
    example: the Program of the shape that it was made from. on_program: is told each Program that is made for a shape.
    """

    sources: tuple[SizeSource, ...]
    sizes: tuple[Polynomial, ...]
    parts: ProgramParts
    names: Mapping[str, Template]
    sequences: Mapping[str, Template]
    arena_tensors: Template
    buffers: Template
    function: FunctionType
    programs: OrderedDict[tuple[int, ...], Program] = field(default_factory=OrderedDict)
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
        if not program.frames:
            self._lend_memory(program)
        return program(inputs)

    def _lend_memory(self, program: Program) -> None:
        """Let `program` run in the memory of one for another shape, if there is enough: new memory is slow at first."""
        for other in list(self.programs.values()):
            if any(program.arena_bytes <= frame.arena.numel() for frame in other.frames[-1:]):
                try:
                    arena = other.frames.pop().arena
                except IndexError:  # another thread took it
                    continue
                program.frames.append(program.new_frame(arena))
                return

    def _make_room(self) -> None:
        if len(self.programs) >= KEPT_SHAPES:
            self.programs.popitem(last=False)
        kept = list(self.programs.values())
        held = sum([frame.arena.numel() for program in kept for frame in program.frames])
        for oldest in kept:
            if held <= KEPT_BYTES:
                break
            held -= sum([frame.arena.numel() for frame in oldest.frames])
            oldest.frames.clear()

    def at(self, point: Sequence[int]) -> Program:
        """The Program for these open sizes."""
        numbers = [polynomial.at(point) for polynomial in self.sizes]
        parts = replace(
            self.parts,
            names={name: fill(template, numbers) for name, template in self.names.items()},
            sequences={name: fill(template, numbers) for name, template in self.sequences.items()},
            arena_tensors=fill(self.arena_tensors, numbers),
            buffers=fill(self.buffers, numbers),
        )
        return link(parts, self.function)

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
    if maker.sizes:
        raise Mismatch("other sizes are placed otherwise")
    program = SizedProgram(
        sources,
        (),
        first,
        maker.make_mapping([each.names for each in parts]),
        maker.make_mapping([each.sequences for each in parts]),
        maker.make([each.arena_tensors for each in parts]),
        maker.make([each.buffers for each in parts]),
        compile_source(first.source),
    )
    program.sizes = tuple(maker.sizes)
    program.example = program.at(typical)
    return program
