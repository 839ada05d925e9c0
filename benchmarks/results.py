"""What a run of the benchmarks yields, to and from JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison
from benchmarks.machine import Machine
from benchmarks.overhead import Overhead
from benchmarks.training.results import TrainingResult
from benchmarks.worker import Cold, ShapeCheck, VariedCalls

__all__ = ["ContenderResult", "Report", "WorkloadResult", "load", "save"]

COLD_FRACTION = 0.1
"""dsjit's cold compile takes at most this fraction of torch.compile's."""


@dataclass(frozen=True, slots=True)
class ContenderResult:
    """One contender on one workload. `rounds` has the median seconds of a warm call for each round.

    Where calls vary, `rounds` has the means, `varied` the calls of each round, `warm_up` those before them.
    `reused` says that `cold` was taken from an earlier run. `error` says why figures are missing.
    """

    contender: str
    cold: Cold | None = None
    reused: bool = False
    rounds: list[float] = dataclasses.field(default_factory=list)
    warm_up: list[VariedCalls] = dataclasses.field(default_factory=list)
    varied: list[VariedCalls] = dataclasses.field(default_factory=list)
    error: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.rounds) if self.rounds else None

    @property
    def mean_varied(self) -> float | None:
        """Mean seconds of a timed call where calls vary, compiles and all."""
        return statistics.mean(s for calls in self.varied for s in calls.seconds) if self.varied else None


@dataclass(frozen=True, slots=True)
class WorkloadResult(Comparison):
    """All contenders on one workload at its first input shape, and dsjit's outputs at every shape."""

    name: str
    title: str
    shape: str
    dtype: str
    target: float
    contenders: list[ContenderResult]
    checks: list[ShapeCheck] = dataclasses.field(default_factory=list)
    check_error: str | None = None

    def contender(self, name: str) -> ContenderResult:
        """The result of the contender called `name`; an empty one if it did not take part."""
        return next((result for result in self.contenders if result.contender == name), ContenderResult(name))

    @property
    def equal(self) -> bool | None:
        own = self.contender("dsjit")
        verdicts = [check.comparison.equal for check in self.checks]
        verdicts += [calls.unequal == 0 for calls in (*own.warm_up, *own.varied)]
        return all(verdicts) if verdicts else None

    @property
    def precise(self) -> bool | None:
        return all(check.comparison.as_precise_as_eager for check in self.checks) if self.checks else None

    @property
    def compiled(self) -> bool | None:
        own = self.contender("dsjit")
        counted = [check.counters for check in self.checks] + [own.cold.counters if own.cold else None]
        present = [counters for counters in counted if counters]
        varied = [calls.counters for calls in own.varied if calls.counters]
        verdicts = [counters.all_compiled for counters in present] + [each.calls_eager == 0 for each in varied]
        return all(verdicts) if verdicts else None


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run. `date` is in ISO 8601, UTC. `errors` say what kept overheads from being taken."""

    machine: Machine
    command: str
    date: str
    workloads: list[WorkloadResult]
    overheads: list[Overhead] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)
    training: list[TrainingResult] = dataclasses.field(default_factory=list)


def save(report: Report, path: Path) -> None:
    """Write the report as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n")


def load(path: Path) -> Report:
    """Read a report that `save` wrote. Raises `OSError`, `json.JSONDecodeError`, and `TypeError` for missing fields."""
    report: Report = _decode(Report, json.loads(path.read_text()))
    return report


def _decode(annotation: Any, value: Any) -> Any:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        return None if value is None else _decode(members[0], value)
    if origin is list:
        return [_decode(typing.get_args(annotation)[0], item) for item in value]
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        names = [field.name for field in dataclasses.fields(annotation)]
        return annotation(**{name: _decode(hints[name], value[name]) for name in names if name in value})  # type: ignore[operator]
    return value
