"""A compiled Graph that checks itself on every run: what `DSJIT_CHECK=2` makes of a Program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dsjit.errors import VerificationError
from dsjit.ir.graph import Graph
from dsjit.oracle.fault import CompiledGraph, Fault, Run, find_fault

__all__ = ["CheckedProgram", "FaultFound"]


class FaultFound(VerificationError):
    """A compiled Graph computed something else than it should have. `fault` tells what, `compiled` and `inputs` with
    which Graph and on what."""

    def __init__(self, fault: Fault, compiled: CompiledGraph, inputs: tuple[torch.Tensor, ...]) -> None:
        super().__init__(f"{compiled.captured.name}: {fault}")
        self.fault = fault
        self.compiled = compiled
        self.inputs = inputs


@dataclass(frozen=True, slots=True)
class CheckedProgram:
    """Called as a `Program`. build: see `find_fault`. Raises FaultFound before anything is written."""

    compiled: CompiledGraph
    build: Callable[[Graph], Run]

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        fault = find_fault(self.compiled, inputs, self.build)
        if fault is not None:
            raise FaultFound(fault, self.compiled, tuple(inputs))
        return self.compiled.program(inputs)
