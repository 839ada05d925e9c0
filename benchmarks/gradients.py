"""Distance of gradients from float64, over several seeds: `python -m benchmarks.gradients [--only NAME] [--seeds N]`.

A step rounds a number up here and down there, so that one seed tells little: eager's own error is a few percent more or
less from seed to seed. Each seed makes another batch and other masks of dropout, the same in float64, eager and dsjit.
The error is the root mean square distance of all gradients from those in float64, relative to these; that of all seeds
together is the root of the mean of its squares.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.contenders import DSJIT
from benchmarks.precision import Float64Arithmetic
from benchmarks.training.catalog import TRAINING, find
from benchmarks.training.tasks import STEP_SEED, in_double, relative_distance
from benchmarks.training.workload import Trainee, TrainingWorkload

__all__ = ["Errors", "main", "measure", "pooled"]


@dataclass(frozen=True, slots=True)
class Errors:
    """Of one seed, relative to the gradients in float64."""

    seed: int
    eager: float
    dsjit: float


def measure(workload: TrainingWorkload, seeds: Sequence[int]) -> Iterator[Errors]:
    """One after the other, of the first step from the same parameters."""
    eager, compiled = Trainee(workload, *workload.build()), Trainee(workload, *workload.build())
    compiled.compile(DSJIT)
    compiled.step()
    exact = Trainee(workload, workload.build()[0].double(), ())
    for seed in seeds:
        torch.manual_seed(seed)
        inputs = workload.inputs()
        for trainee, batch, arithmetic in (
            (eager, inputs, nullcontext()),
            (compiled, inputs, nullcontext()),
            (exact, in_double(inputs), Float64Arithmetic()),  # type: ignore[no-untyped-call]
        ):
            trainee.inputs = batch
            trainee.clear_gradients()
            torch.manual_seed(seed)
            with arithmetic:
                trainee.step()
        reference = exact.gradients()
        errors = [relative_distance(trainee.gradients(), reference) for trainee in (eager, compiled)]
        yield Errors(seed, *errors)


def pooled(errors: Sequence[float]) -> float:
    """That of all seeds together."""
    return math.sqrt(sum(error * error for error in errors) / len(errors))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    names = [each.name for each in TRAINING if not each.whole_step]
    parser = argparse.ArgumentParser("python -m benchmarks.gradients", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seeds", type=int, default=6, help="how many (default 6)")
    options = parser.parse_args(arguments)
    table = Table("workload", "seed", "eager", "dsjit", "dsjit / eager")
    for name in options.only:
        workload = find(name)
        seeds = range(STEP_SEED, STEP_SEED + options.seeds)
        found = list(track(measure(workload, seeds), workload.title, total=len(seeds)))
        rows = [(str(each.seed), each.eager, each.dsjit) for each in found]
        rows.append(("all", pooled([each.eager for each in found]), pooled([each.dsjit for each in found])))
        for label, eager, dsjit in rows:
            table.add_row(workload.title, label, f"{eager:.3e}", f"{dsjit:.3e}", f"{dsjit / eager:.3f}")
        table.add_section()
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
