"""What a profile costs, and whether it tells the truth: `python -m benchmarks.profiler`.

Calls with and without a profile take turns. The cost is the ratio of their times; the truth is the time that the
profile gives to named parts of a call, against a clock around calls that nobody profiles. The cost is told with an
interval that holds the true median in 95 of 100 cases: a machine that does other things, too, gives a wide one. There,
the processor time that the calls add (exact on one thread) tells more.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich import box
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
    processor: how much more processor time calls take with a profile, its sampling thread included.
    cost_range, processor_range: that hold the true medians in 95 of 100 cases.
    outside: share of the part that is outside jitted calls, which is what no clock of the profile saw.
    on_lines: share of the time in compiled programs that lands on a line."""

    name: str
    plain: float
    profiled: float
    told: float
    cost: float
    cost_range: tuple[float, float]
    processor: float
    processor_range: tuple[float, float]
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


def _whole_step(model: nn.Module, loss: Callable[[Any], torch.Tensor], *inputs: Any) -> Step:
    """Forward, backward and optimizer in one jitted function."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    @dsjit.jit
    def step(*args: Any) -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(model(*args))
        value.backward()
        optimizer.step()
        return value.detach()

    return lambda: step(*inputs)


def _last_state(result: Any) -> torch.Tensor:
    return result.last_hidden_state.square().mean()


STEPS: Final[dict[str, Callable[[], Step]]] = {
    "BERT-base, 4 layers": lambda: _inference(language.bert(4)(), *language.token_ids(0)),
    "BERT-base, 12 layers": lambda: _inference(language.bert(12)(), *language.token_ids(0)),
    "ResNet-50": lambda: _inference(residual.resnet(), *residual.images(1)),
    "BERT-base, 2 layers, a training step": lambda: _training(
        language.bert(2)().eval(), _last_state, *language.token_ids(1)
    ),
    "BERT-base, 2 layers, a whole step with AdamW": lambda: _whole_step(
        language.bert(2)().eval(), _last_state, *language.token_ids(1)
    ),
    "ResNet-50, a training step": lambda: _training(
        residual.resnet().eval(), lambda result: result.square().mean(), *residual.images(1)
    ),
}


def measure(name: str, step: Step, rounds: int) -> Measured:
    """Take turns, so that what else the machine does hits both alike."""
    for _ in range(3):
        step()
    plain: list[_Seconds] = []
    profiled: list[_Seconds] = []
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
    cost = [a.wall / b.wall - 1 for a, b in zip(profiled, plain, strict=True)]
    processor = [a.processor / b.processor - 1 for a, b in zip(profiled, plain, strict=True)]
    error = [a / b.wall - 1 for a, b in zip(told, plain, strict=True)]
    median = statistics.median
    return Measured(
        name, median(a.wall for a in plain), median(a.wall for a in profiled), median(told), median(cost),
        _range(cost), median(processor), _range(processor), median(error), median(outside), median(lines),
    )  # fmt: skip


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Of the median, at 95 %: the order statistics that a binomial count of 1/2 leaves between them (normal
    approximation; Conover, "Practical Nonparametric Statistics", 3.2)."""
    ordered, count = sorted(values), len(values)
    aside = max(math.floor((count - 1.96 * math.sqrt(count)) / 2), 0)
    return ordered[aside], ordered[count - 1 - aside]


@dataclass(frozen=True, slots=True)
class _Seconds:
    """Of a call: on the clock, and of processor time."""

    wall: float
    processor: float


def _seconds(step: Step) -> _Seconds:
    """Of a call, of some in a row."""
    begin, spent = time.perf_counter(), time.process_time()
    for _ in range(CALLS):
        step()
    return _Seconds((time.perf_counter() - begin) / CALLS, (time.process_time() - spent) / CALLS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table. Returns 1 if a limit is broken."""
    parser = argparse.ArgumentParser("python -m benchmarks.profiler", description=__doc__)
    parser.add_argument("--only", choices=list(STEPS), action="append", help="one of the steps")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows: list[Measured] = []
    for name in options.only or STEPS:
        rows.append(measure(name, STEPS[name](), options.rounds))
        if options.json is not None:  # after each, so that a run that is cut short has left something
            data = {"threads": options.threads, "rounds": options.rounds, "steps": [asdict(row) for row in rows]}
            options.json.write_text(json.dumps(data, indent=1), encoding="utf-8")
    Console().print(_table(rows, f"profiles, {options.threads} threads, {options.rounds} rounds in turns"))
    return int(any(row.cost > COST_LIMIT or abs(row.error) > TRUTH_LIMIT for row in rows))


def _table(rows: Sequence[Measured], title: str) -> Table:
    """Fits into 80 columns."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("step", overflow="fold")
    for heading in ("a call", "cost", "(range)", "cpu", "(range)", "told", "lines"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        ranges = [f"{100 * low:+.1f} {100 * high:+.1f}" for low, high in (row.cost_range, row.processor_range)]
        table.add_row(
            row.name, f"{row.plain * 1e3:.1f} ms", f"{row.cost:+.1%}", ranges[0], f"{row.processor:+.1%}", ranges[1],
            f"{row.error:+.1%}", f"{row.on_lines:.0%}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    raise SystemExit(main())
