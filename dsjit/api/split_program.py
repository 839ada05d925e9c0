"""A whole training step that runs as two Programs, the second in the memory of the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch

from dsjit.codegen.program import GuestProgram, Program, handed_over
from dsjit.codegen.sized_program import SizedProgram
from dsjit.codegen.triton.program import GpuGuestProgram, GpuProgram
from dsjit.codegen.triton.replay import ReplayedProgram

__all__ = ["SplitProgram", "run_behind"]

AnyProgram: TypeAlias = Program | GpuProgram | ReplayedProgram
Run: TypeAlias = Callable[[Iterable[torch.Tensor]], list[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class SplitProgram:
    """forward, backward: of the halves of a step (`passes/split_step.py`)."""

    forward: Run
    backward: Run

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As `Program.__call__`. What the forward keeps is let go after its last use."""
        taken = [*inputs, *self.forward(inputs)]
        return self.backward(handed_over(taken))


def run_behind(host: AnyProgram | SizedProgram, program: AnyProgram) -> Run:
    """`program`, as it is called when `host` has run: in the arena of that, where both are of one machine."""
    if isinstance(program, Program) and isinstance(host, Program):
        return GuestProgram(program, host)
    first = host.program if isinstance(host, ReplayedProgram) else host
    if isinstance(program, GpuProgram) and isinstance(first, GpuProgram):
        return GpuGuestProgram(program, first)
    if isinstance(program, ReplayedProgram) and isinstance(first, GpuProgram):
        return partial(program, unrecorded=GpuGuestProgram(program.program, first))
    return program
