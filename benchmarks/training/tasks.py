"""What a worker process is asked for on a training workload. The first request makes and compiles the trainee.

Workers run under `torch.no_grad()`; here gradients are wanted.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import contenders
from benchmarks.precision import Float64Arithmetic
from benchmarks.training import catalog, memory
from benchmarks.training.workload import LARGEST_NORM, Trainee
from benchmarks.worker import WARM_CALLS, Cold, State, read_counters, reset_counters

__all__ = [
    "StepMemory",
    "gradient_error",
    "in_double",
    "loss_curve",
    "measure_cold_step",
    "measure_memory",
    "measure_steps",
    "relative_distance",
    "save_float64_gradients",
]

STEP_SEED = 40
SECONDS_PER_ROUND = 0.5


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes of live tensors beyond parameters, buffers and the batch: `held` between steps, without gradients; what the
    forward adds for the backward (`saved`; None for a whole step); the `peak` of a step, `held` included.

    `resident`: the largest resident size of the process in a step, with everything.
    """

    held: int
    saved: int | None
    peak: int
    resident: int


@torch.enable_grad()
def measure_cold_step(state: State) -> Cold:
    """Steps eagerly, starts the contender up, then compiles by stepping. Keeps the compiled trainee."""
    memory.count_from_now()
    workload = catalog.find(state.workload)
    if not workload.whole_step:
        Trainee(workload, *workload.build()).step()
    trainee = Trainee(workload, *workload.build())
    state.at_rest = memory.live_bytes()
    contender = contenders.find(state.contender)
    start = time.perf_counter()
    contender.start_up()
    start_up = time.perf_counter() - start
    reset_counters(state)
    trainee.compile(contender)
    first_two_steps = _seconds(trainee) + _seconds(trainee)
    state.trainee = trainee
    warm_step = min(_seconds(trainee) for _ in range(WARM_CALLS))
    return Cold(start_up, first_two_steps, warm_step, read_counters(state))


def _seconds(trainee: Trainee) -> float:
    if not trainee.workload.whole_step:
        trainee.clear_gradients()
    start = time.perf_counter()
    trainee.step()
    return time.perf_counter() - start


@torch.enable_grad()
def measure_steps(state: State) -> list[float]:
    """Seconds of each of some steps: 0.5 s of them, one at least."""
    trainee = _trainee(state)
    gc.collect()
    gc.disable()
    seconds: list[float] = []
    while sum(seconds) < SECONDS_PER_ROUND:
        seconds.append(_seconds(trainee))
    gc.enable()
    if not trainee.workload.whole_step:
        trainee.clear_gradients()
    return seconds


@torch.enable_grad()
def measure_memory(state: State) -> StepMemory:
    """What a warm step takes."""
    trainee = _trainee(state)
    for _ in range(2):  # a step that finds no gradients may be one that was not compiled yet
        trainee.clear_gradients()
        trainee.step()
    trainee.clear_gradients()
    gc.collect()
    before = memory.live_bytes()
    saved = None
    if not trainee.workload.whole_step:
        loss = trainee.forward()
        saved = memory.live_bytes() - before - loss.nbytes
        del loss
    peak = memory.most_live_bytes(trainee.step) - state.at_rest
    trainee.clear_gradients()
    resident = memory.most_resident_bytes(trainee.step)
    trainee.clear_gradients()
    return StepMemory(before - state.at_rest, saved, peak, resident)


@torch.enable_grad()
def save_float64_gradients(state: State, file: str) -> None:
    """The gradients of the first step in float64 arithmetic, with the random draws of float32, into `file`."""
    workload = catalog.find(state.workload)
    model, inputs = workload.build()
    trainee = Trainee(workload, model.double(), in_double(inputs))
    torch.manual_seed(STEP_SEED)
    with Float64Arithmetic():  # type: ignore[no-untyped-call]
        loss: Tensor = model(*trainee.inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        if workload.whole_step:
            nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
    torch.save(trainee.gradients(), file)


def in_double(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies in float64 of what is in floating point."""
    return tuple(
        each.detach().double().requires_grad_(each.requires_grad) if each.is_floating_point() else each
        for each in inputs
    )


@torch.enable_grad()
def gradient_error(state: State, file: str) -> float:
    """Of all gradients of the first step: the root mean square distance from those in `file`, relative to these."""
    trainee = _trainee(state)
    trainee.reset()
    torch.manual_seed(STEP_SEED)
    trainee.step()
    return relative_distance(trainee.gradients(), torch.load(Path(file), mmap=True))


def relative_distance(gradients: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Root mean square distance of all gradients, relative to that of the reference. Raises ValueError where one side
    has gradients that the other has not."""
    if gradients.keys() != reference.keys():
        raise ValueError(f"gradients of {sorted(gradients.keys() ^ reference.keys())} are on one side only")
    apart = sum(float((gradients[name].double() - exact).square().sum()) for name, exact in reference.items())
    whole = sum(float(exact.square().sum()) for exact in reference.values())
    return math.sqrt(apart / whole)


@torch.enable_grad()
def loss_curve(state: State, nudge: bool) -> list[float]:
    """The losses of the first steps of training. nudge: from half of the parameters rounded to the next float."""
    trainee = _trainee(state)
    trainee.reset(nudge)
    torch.manual_seed(STEP_SEED)
    losses = trainee.train(trainee.workload.curve)
    trainee.clear_gradients()
    return losses


def _trainee(state: State) -> Trainee:
    if state.trainee is None:
        raise RuntimeError("measure_cold_step comes before")
    return state.trainee
