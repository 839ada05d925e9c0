"""What a profile costs, and whether it tells the truth: `python -m benchmarks.profiler`.

Calls with and without a profile take turns. The cost is the ratio of their times; the truth is the time that the
profile gives to named parts of a call, against a clock around calls that nobody profiles.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import dsjit
from benchmarks.workloads import language, residual

__all__ = ["Measured", "main", "measure"]

COST_LIMIT: Final = 0.03
TRUTH_LIMIT: Final = 0.05
ROUNDS: Final = 15
CALLS: Final = 3

Step = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians over the rounds. plain, profiled, told: seconds of a call from outside, and of all parts that the profile
    names; cost, error: how much longer the latter two are than the first of the same round, of a call.
    outside: share of the part that is outside jitted calls, which is what no clock of the profile saw.
    on_lines: share of the time in compiled programs that lands on a line."""

    name: str
    plain: float
    profiled: float
    told: float
    cost: float
    error: float
    outside: float
    on_lines: float


def _inference(model: nn.Module, *inputs: Any) -> Step:
    dsjit.jit(model.eval())

    def step() -> None:
        with torch.no_grad():
            model(*inputs)

    return step


def _training(model: nn.Module, loss: Callable[[Any], torch.Tensor], *inputs: Any) -> Step:
    dsjit.jit(model)

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        loss(model(*inputs)).backward()

    return step


STEPS: Final[dict[str, Callable[[], Step]]] = {
    "BERT-base, 4 layers": lambda: _inference(language.bert(4)(), *language.token_ids(0)),
    "ResNet-50": lambda: _inference(residual.resnet(), *residual.images(1)),
    "BERT-base, 2 layers, a training step": lambda: _training(
        language.bert(2)().eval(), lambda result: result.last_hidden_state.square().mean(), *language.token_ids(1)
    ),
    "ResNet-50, a training step": lambda: _training(
        residual.resnet().eval(), lambda result: result.square().mean(), *residual.images(1)
    ),
}


def measure(name: str, step: Step, rounds: int) -> Measured:
    """Take turns, so that what else the machine does hits both alike."""
    for _ in range(3):
        step()
    plain: list[float] = []
    profiled: list[float] = []
    told: list[float] = []
    lines: list[float] = []
    outside: list[float] = []
    for number in range(2 * rounds):
        if number % 4 in (0, 3):  # either comes first as often as the other
            plain.append(_seconds(step))
            continue
        with dsjit.profile() as found:
            profiled.append(_seconds(step))
        data = found.data
        told.append(sum(part.ns for part in data.parts) / CALLS / 1e9)
        lines.append(data.attributed_ns / data.compiled_ns)
        outside.append(next(part.share for part in data.parts if part.name == "outside jitted calls"))
    cost, error = ([a / b - 1 for a, b in zip(column, plain, strict=True)] for column in (profiled, told))
    return Measured(name, *map(statistics.median, (plain, profiled, told, cost, error, outside, lines)))


def _seconds(step: Step) -> float:
    """Of a call, of some in a row."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        step()
    return (time.perf_counter() - begin) / CALLS


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table. Returns 1 if a limit is broken."""
    parser = argparse.ArgumentParser("python -m benchmarks.profiler", description=__doc__)
    parser.add_argument("--only", choices=list(STEPS), action="append", help="one of the steps")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    table = Table(title=f"profiles, {options.threads} threads, {options.rounds} rounds in turns", title_justify="left")
    for heading in ("step", "plain", "profiled", "cost", "told", "error", "outside", "on lines"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    rows = [measure(name, make(), options.rounds) for name, make in STEPS.items() if name in (options.only or STEPS)]
    for row in rows:
        times = [f"{seconds * 1e3:.2f} ms" for seconds in (row.plain, row.profiled)]
        shares = [f"{row.error:+.1%}", f"{row.outside:.1%}", f"{row.on_lines:.1%}"]
        table.add_row(row.name, *times, f"{row.cost:+.1%}", f"{row.told * 1e3:.2f} ms", *shares)
    Console().print(table)
    return int(any(row.cost > COST_LIMIT or abs(row.error) > TRUTH_LIMIT for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
