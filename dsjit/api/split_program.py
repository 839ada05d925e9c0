"""A whole training step that runs as two Programs, the second in the memory of the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dsjit.codegen.program import GuestProgram, Program

__all__ = ["SplitProgram"]


@dataclass(frozen=True, slots=True)
class SplitProgram:
    """forward, backward: of the halves of a step (`passes/split_step.py`)."""

    forward: Program
    backward: GuestProgram

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As `Program.__call__`. What the forward keeps is let go after its last use."""
        kept = self.forward(inputs)
        kept.reverse()
        return self.backward(_handed_over(inputs, kept))


def _handed_over(inputs: Sequence[torch.Tensor], kept: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """kept: from the last to the first; who takes them is then the only one to hold them."""
    yield from inputs
    while kept:
        yield kept.pop()
