"""What a warm call costs beside the kernels: dispatch and guards."""

from __future__ import annotations

import importlib
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.contenders import DSJIT
from benchmarks.launches import own_launch_us
from benchmarks.worker import State
from benchmarks.workloads import language, residual
from benchmarks.workloads.workload import Arguments, Program, cast

__all__ = ["CALL_LIMIT", "LAUNCH_LIMIT", "Overhead", "call_overheads"]

CALL_LIMIT: Final = 10e-6
"""Seconds that a warm call of a function of four tensors may take beyond eager's."""

LAUNCH_LIMIT: Final = 4e-6
"""Seconds of the host's that a launch on a GPU may take, the driver's own included."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """A model whose guards are timed. limit: the seconds that they may take."""

    title: str
    model: Callable[[], Program]
    inputs: Callable[[int], Arguments]
    limit: float = 60e-6


GUARDED: Final = (
    Guarded("BERT-base, 12 layers", language.bert(12), language.token_ids),
    Guarded("BERT-base, 4 layers", language.bert(4), language.token_ids),
    Guarded("ResNet-50", residual.resnet, residual.images),
    Guarded("ResNet-152", lambda: residual.resnet(152), residual.images, limit=150e-6),
)

REPEATS, CALLS = 30, 500


@dataclass(frozen=True, slots=True)
class Overhead:
    """What dsjit adds to a warm call, in seconds: `measured` is the least of many, `limit` is what is promised."""

    name: str
    measured: float
    limit: float
    note: str


def four_tensors(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Three pointwise ops."""
    return a * b + c * d


def call_overheads(state: State) -> list[Overhead]:
    """The overheads of this process's contender, which is dsjit."""
    tensors = [torch.ones(4) for _ in range(4)]
    compiled = DSJIT.compile(four_tensors)
    eager, jitted = interleaved([lambda: four_tensors(*tensors), lambda: compiled(*tensors)])
    note = f"{jitted * 1e6:.1f} µs a call, {eager * 1e6:.1f} µs in eager, tensors of 4 floats, three ops"
    overheads = [Overhead("warm call of a function of 4 tensors, over eager", jitted - eager, CALL_LIMIT, note)]
    for guarded in GUARDED:
        module = cast(guarded.model(), torch.float32)
        overheads.append(_guards(guarded, DSJIT.compile(module)))
    note = "one of a row of 100, with a function that returns at once in the place of CUDA's"
    overheads.append(Overhead("launch on a GPU, but for the driver", 1e-6 * own_launch_us(), LAUNCH_LIMIT, note))
    return overheads


def _guards(guarded: Guarded, compiled: Program) -> Overhead:
    """What it takes to find out that a model's compiled program answers a call."""
    arguments = guarded.inputs(0)
    compiled(*arguments)
    compiled(*arguments)
    [tree] = importlib.import_module("dsjit.api.entry").jitted_of(compiled).trees
    [check] = interleaved([lambda: tree.guard.check(arguments, {})])
    return Overhead(f"guards of {guarded.title}", check, guarded.limit, f"{len(tree.guard.describe())} conditions")


def interleaved(functions: list[Callable[[], Any]]) -> list[float]:
    """The least seconds of a call of each function, in turns."""
    for function in functions:
        function()
    rounds = [[timeit.timeit(function, number=CALLS) / CALLS for function in functions] for _ in range(REPEATS)]
    return [min(column) for column in zip(*rounds, strict=True)]
