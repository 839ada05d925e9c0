"""What measuring a training workload yields."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass

from benchmarks.comparison import Comparison
from benchmarks.training.tasks import StepMemory
from benchmarks.worker import Cold

__all__ = ["TrainingFigures", "TrainingResult"]


@dataclass(frozen=True, slots=True)
class TrainingFigures:
    """One contender. `rounds` has the median seconds of a step for each round.

    `gradient_error`: of the first step, root mean square distance of all gradients from float64, relative to these.
    `losses`: of the first steps of training. Both are missing where the contender draws other random numbers.
    `reused` says that `cold` was taken from an earlier run. `error` says why figures are missing.
    """

    contender: str
    cold: Cold | None = None
    reused: bool = False
    rounds: list[float] = dataclasses.field(default_factory=list)
    memory: StepMemory | None = None
    gradient_error: float | None = None
    losses: list[float] = dataclasses.field(default_factory=list)
    error: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.rounds) if self.rounds else None


@dataclass(frozen=True, slots=True)
class TrainingResult(Comparison):
    """All contenders on one training workload. `nudged`: eager's losses from parameters half of which were rounded to
    the next float. `saved`, `peak`: what is promised, as shares of eager's bytes. `check_error` says why there are no
    gradients in float64."""

    name: str
    title: str
    shape: str
    saved: float | None
    peak: float | None
    contenders: list[TrainingFigures]
    nudged: list[float] = dataclasses.field(default_factory=list)
    check_error: str | None = None

    def contender(self, name: str) -> TrainingFigures:
        """The figures of the contender called `name`; empty ones if it did not take part."""
        return next((each for each in self.contenders if each.contender == name), TrainingFigures(name))

    def saved_share(self, contender: str, of: str) -> float | None:
        """Bytes that are saved for the backward, as a share of the other's."""
        one, other = self.contender(contender).memory, self.contender(of).memory
        return one.saved / other.saved if one and other and one.saved is not None and other.saved else None

    def peak_share(self, contender: str, of: str) -> float | None:
        """The peak of live tensor bytes, as a share of the other's."""
        one, other = self.contender(contender).memory, self.contender(of).memory
        return one.peak / other.peak if one and other and other.peak else None

    def gradient_ratio(self, contender: str, of: str) -> float | None:
        """The gradients' error, as a multiple of the other's."""
        one, other = self.contender(contender).gradient_error, self.contender(of).gradient_error
        return one / other if one is not None and other else None

    def curve_distance(self, losses: list[float]) -> float | None:
        """The largest relative distance from eager's losses."""
        pairs = list(zip(losses, self.contender("eager").losses, strict=False))
        return max(abs(one - other) / abs(other) for one, other in pairs) if pairs else None
