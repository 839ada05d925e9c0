"""What a workload is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["Arguments", "Case", "Program", "Tolerance", "Workload", "cast", "seeded"]

SEED_STRIDE = 1000
"""Between the seeds of two draws for one shape; a workload has fewer shapes."""

Program: TypeAlias = Callable[..., Any]
Arguments: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an output y' may be from eager's y: |y' - y| <= relative * |y| + absolute * max|y|, for each element."""

    relative: float
    absolute: float

    def __str__(self) -> str:
        return f"{self.relative:.1e}·|y| + {self.absolute:.1e}·max|y|"


@dataclass(frozen=True, slots=True)
class Case:
    """A program and the arguments of one call."""

    program: Program
    arguments: Arguments

    def __call__(self) -> Any:
        return self.program(*self.arguments)


@dataclass(frozen=True, slots=True)
class Workload:
    """A program with three input shapes or more; the first one is the one that is timed.

    `model()` makes the callable in float32, `inputs(i)` its arguments for `shapes[i]`, from the current seed.
    `tolerances` has the dtypes in which outputs are compared. `target` is the least speed in steady state, as a
    multiple of torch.compile's default, that dsjit promises.

    `varied` says that what the program does depends on what its input tensors hold: every timed call then takes
    another input, which no call before it had, and its result is compared with eager's. Outcomes depend on roundings
    there, so that float64 arithmetic and bfloat16 are other programs: they are compared in float32 only.
    """

    name: str
    title: str
    shapes: tuple[str, ...]
    model: Callable[[], Program]
    inputs: Callable[[int], Arguments]
    tolerances: Mapping[torch.dtype, Tolerance]
    target: float = 1.0
    varied: bool = False

    def build(self, dtype: torch.dtype, shape_index: int = 0) -> Case:
        """A new program in evaluation mode with arguments: the same numbers on every call, rounded from float32."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20)
            program = self.model()
        return Case(cast(program, dtype), self.arguments(dtype, shape_index))

    def arguments(self, dtype: torch.dtype, shape_index: int, draw: int = 0) -> Arguments:
        """The arguments for one input shape: the same numbers for the same `draw`, rounded from float32."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(30 + shape_index + SEED_STRIDE * draw)
            arguments: Arguments = tree_map(lambda leaf: cast(leaf, dtype), self.inputs(shape_index))
        return arguments


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A floating tensor in `dtype`, a module in evaluation mode with its tensors cast in place, or the value itself."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return value.to(dtype).eval() if isinstance(value, nn.Module) else value


def seeded(*shape: int) -> Tensor:
    """Standard normal float32 numbers from the current seed."""
    return torch.randn(shape)
