"""Peak memory of training steps against their budget: `python -m benchmarks.memory [--only NAME] [--json FILE]`.

One counter for eager and dsjit: bytes that torch's allocator has handed out and not got back, beyond what there was
before the step (the `[memory]` events of torch's profiler), so arguments and parameters are not in it, and gradients
are. What is computed again under a budget costs time: steps are timed in turns with those without a budget.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.nn import functional as F

import dsjit
from benchmarks.workloads import language, residual
from dsjit.api.entry import jitted_of

__all__ = ["main", "measure", "peak_of_step", "saved_bytes"]

Step: TypeAlias = Callable[..., Tensor]

POINTS: Final = 4
"""Budgets of a curve, below what is taken when nothing is computed again; the smallest budget that works comes last."""

DEEPEST: Final = 0.25
"""Of eager's activations: down to there, besides the gradients, the curve is to go."""

UNLIMITED: Final = 2**62

MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Workload:
    """make: the model, other arguments of the step, and the step, which gives a loss. All is in training mode."""

    title: str
    make: Callable[[], tuple[nn.Module, tuple[Tensor, ...], Step]]


@dataclass(frozen=True, slots=True)
class Row:
    """Bytes; `slower` is the time of a step over that without a budget. segments, recomputed: see `TrainingMemory`.
    first: seconds of the first step, which is traced, planned and compiled; planning: of these, in the planner."""

    budget: int
    predicted: int
    measured: int
    kept: int
    segments: int
    recomputed: int
    slower: float
    first: float
    planning: float


@dataclass(frozen=True, slots=True)
class Curve:
    """activations: bytes that eager saves for its backward, parameters and arguments apart. gradients: of parameters.
    eager: its peak. plain: that of dsjit without a budget, whose first step takes `first` seconds."""

    title: str
    activations: int
    gradients: int
    eager: int
    plain: int
    first: float
    rows: tuple[Row, ...]


def _bert(layers: int, batch: int) -> tuple[nn.Module, tuple[Tensor, ...], Step]:
    def step(model: nn.Module, ids: Tensor) -> Tensor:
        loss: Tensor = model(ids).last_hidden_state.square().mean()
        return loss

    return language.bert(layers)().train(), (torch.randint(0, language.SMALLEST_VOCABULARY, (batch, 128)),), step


def _gpt2(layers: int, batch: int) -> tuple[nn.Module, tuple[Tensor, ...], Step]:
    model = language.gpt2(layers)().train()
    model.config.use_cache = False

    def step(model: nn.Module, ids: Tensor) -> Tensor:
        logits = model(ids[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    return model, (torch.randint(0, model.config.vocab_size, (batch, 257)),), step


def _resnet(depth: int) -> tuple[nn.Module, tuple[Tensor, ...], Step]:
    def step(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(model(images), classes)

    return residual.resnet(depth).train(), (torch.randn(4, 3, 224, 224), torch.randint(0, 1000, (4,))), step


WORKLOADS: Final = {
    "bert": Workload("BERT-base, 12 layers, 2x128", lambda: _bert(12, 2)),
    "bert_large_batch": Workload("BERT-base, 12 layers, 8x128", lambda: _bert(12, 8)),
    "gpt2": Workload("GPT-2 small, 12 layers, 2x256, vocabulary of 50,257", lambda: _gpt2(12, 2)),
    "gpt2_large_batch": Workload("GPT-2 small, 12 layers, 8x256, vocabulary of 50,257", lambda: _gpt2(12, 8)),
    "resnet152": Workload("ResNet-152, batch of 4, 224x224", lambda: _resnet(152)),
}


def saved_bytes(model: nn.Module, arguments: Sequence[Tensor], step: Step) -> int:
    """Bytes of the storages that eager saves for the backward, those of parameters, buffers and arguments apart."""
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers(), *arguments)}
    storages: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(model, *arguments)
    return sum(storage.nbytes() for storage in storages.values())


def peak_of_step(model: nn.Module, arguments: Sequence[Tensor], step: Step) -> int:
    """Bytes that were handed out at once, at most, in one step with its backward. Gradients begin as None."""
    model.zero_grad(set_to_none=True)
    with profile(profile_memory=True) as recorded:
        step(model, *arguments).backward()
    alive = peak = 0
    for event in recorded.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def _compiled_peak(model: nn.Module, arguments: Sequence[Tensor], step: Step) -> int:
    """The same, and the arenas that the Programs hold from step to step."""
    _seconds(model, arguments, step)
    peak = peak_of_step(model, arguments, step)
    frames = [frame for each in _compilations(step) for frame in each.program.frames]
    return peak + sum(frame.arena.untyped_storage().nbytes() for frame in frames)


def _compilations(step: Step) -> list[Any]:
    """Of a jitted step."""
    jitted = jitted_of(step)
    assert jitted is not None
    return [compilation for tree in jitted.trees for compilation in tree.compilations]


def _seconds(model: nn.Module, arguments: Sequence[Tensor], step: Step) -> float:
    model.zero_grad(set_to_none=True)
    begin = time.perf_counter()
    step(model, *arguments).backward()
    return time.perf_counter() - begin


def measure(workload: Workload, rounds: int, points: int = POINTS, tell: Callable[[str], None] = print) -> Curve:
    """The curve of one workload. rounds: timed steps of each kind. tell: is told how far it is.

    Budgets go in equal steps from what is taken without one down to a quarter of eager's activations beyond the
    gradients; the last is the smallest that works. Where less is taken without a budget, all steps lead there.
    """
    torch.manual_seed(0)
    model, arguments, step = workload.make()
    activations = saved_bytes(model, arguments, step)
    eager = peak_of_step(model, arguments, step)
    tell(f"{workload.title}: eager takes {eager / MIB:.0f} MiB")
    plain = dsjit.jit(step)
    first = _seconds(model, arguments, plain)
    _seconds(model, arguments, plain)  # the first backward holds all that is kept
    without = _compiled_peak(model, arguments, plain)
    tell(f"without a budget: {without / MIB:.0f} MiB")
    gradients = sum(parameter.nbytes for parameter in model.parameters())

    def row(budget: int) -> Row:
        limited = dsjit.jit(step, memory_budget=budget)
        seconds = _seconds(model, arguments, limited)
        memory = dsjit.explain(limited)(model, *arguments).training
        assert memory is not None
        measured = _compiled_peak(model, arguments, limited)
        times = [(_seconds(model, arguments, limited), _seconds(model, arguments, plain)) for _ in range(rounds)]
        slower = statistics.median(limited_time / plain_time for limited_time, plain_time in times)
        tell(f"told {memory.peak / MIB:.0f} MiB, taken {measured / MIB:.0f} MiB, first step {seconds:.1f} s")
        return Row(
            budget, memory.peak, measured, memory.kept, memory.segments, memory.recomputed, slower, seconds,
            sum(each.timer.seconds.get("memory_plan", 0.0) for each in _compilations(limited)),
        )  # fmt: skip

    rows = [row(UNLIMITED)]
    smallest = _smallest_budget(model, arguments, step)
    tell(f"the smallest budget: {smallest / MIB:.0f} MiB")
    top, deepest = rows[0].predicted, gradients + int(DEEPEST * activations)
    bottom = max(smallest, deepest) if deepest < top else smallest
    budgets = [top - number * (top - bottom) // points for number in range(1, points + 1)]
    rows += [row(budget) for budget in sorted({*budgets, smallest} - {top}, reverse=True)]
    return Curve(workload.title, activations, gradients, eager, without, first, tuple(rows))


def _smallest_budget(model: nn.Module, arguments: Sequence[Tensor], step: Step) -> int:
    """What a refusal names."""
    try:
        dsjit.jit(step, memory_budget=1)(model, *arguments)
    except dsjit.MemoryBudgetError as refused:
        found = re.search(r"use memory_budget=(\d+)", str(refused))
        assert found is not None
        return int(found[1])
    raise AssertionError("a step in one byte")


def table(curve: Curve) -> Table:
    """The curve in MiB; percentages are of eager's activations."""
    title = (
        f"{curve.title}: eager saves {curve.activations / MIB:.0f} MiB, gradients are {curve.gradients / MIB:.0f} MiB, "
        f"peak of a step: eager {curve.eager / MIB:.0f} MiB, dsjit without a budget {curve.plain / MIB:.0f} MiB, whose "
        f"first step takes {curve.first:.1f} s"
    )
    found = Table(title=title, title_justify="left")
    for heading in (
        "budget",
        "predicted",
        "measured",
        "off by",
        "kept",
        "beyond gradients",
        "again",
        "step time",
        "first step",
        "planning",
    ):
        found.add_column(heading, justify="right")
    for row in curve.rows:
        kept, beyond = row.kept / curve.activations, (row.measured - curve.gradients) / curve.activations
        found.add_row(
            "none" if row.budget == UNLIMITED else f"{row.budget / MIB:.0f}",
            *[f"{size / MIB:.0f}" for size in (row.predicted, row.measured)],
            f"{row.predicted / row.measured - 1:+.1%}",
            f"{kept:.0%}",
            f"{beyond:.0%}",
            f"{row.recomputed} of {row.segments}",
            f"{row.slower:.2f}x",
            f"{row.first:.1f} s",
            f"{row.planning:.1f} s",
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables. Returns 1 when a peak breaks its budget by a tenth, or is off by as much from what was told."""
    parser = argparse.ArgumentParser("python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--only", choices=list(WORKLOADS), action="append", help="one of the workloads")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each kind (default 3)")
    parser.add_argument("--points", type=int, default=POINTS, help=f"budgets of each curve (default {POINTS})")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    curves: list[Curve] = []
    progress = Console(stderr=True)
    for name in options.only or WORKLOADS:
        curves.append(measure(WORKLOADS[name], options.rounds, options.points, progress.log))
        Console(width=150).print(table(curves[-1]))
        if options.json:
            options.json.write_text(json.dumps([asdict(curve) for curve in curves], indent=2) + "\n")
    rows = [row for curve in curves for row in curve.rows]
    return int(any(abs(row.predicted / row.measured - 1) > 0.1 or row.measured > 1.1 * row.budget for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
