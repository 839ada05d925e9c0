"""One run: starts the workers of each workload, interleaves their warm calls, gathers what they report."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID

from benchmarks.contenders import DSJIT, Contender
from benchmarks.overhead import Overhead, call_overheads
from benchmarks.results import ContenderResult, Report, WorkloadResult
from benchmarks.worker import (
    VARIED_CALLS,
    WARM_UP_CALLS,
    Cold,
    ShapeCheck,
    VariedCalls,
    Worker,
    WorkerError,
    check_shapes,
    measure_cold,
    measure_varied,
)
from benchmarks.workloads.workload import Workload

__all__ = ["Display", "Plan", "measure_overheads", "measure_workload", "start_worker"]

POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `budget` is the most seconds that one compile or one check may take.

    `cache` is the folder below which contenders keep files; `reused` the earlier run whose cold figures serve for
    those contenders (their files are then kept, and their compile is not cold).
    """

    contenders: Sequence[Contender]
    dtype: torch.dtype
    check_dtypes: Sequence[torch.dtype]
    rounds: int
    budget: float
    threads: int
    cache: Path
    reused: Report | None = None

    def earlier(self, workload: Workload, contender: Contender) -> Cold | None:
        """The cold figures of the reused run that stand for a measurement, if it has them."""
        if self.reused is None or not contender.keeps_files:
            return None
        wanted = (workload.name, str(self.dtype).removeprefix("torch."), workload.shapes[0])
        found = (each for each in self.reused.workloads if (each.name, each.dtype, each.shape) == wanted)
        return next((each.contender(contender.name).cold for each in found), None)

    def earlier_training(self, workload: str, shape: str, contender: Contender) -> Cold | None:
        """The same for the training workload of this name."""
        if self.reused is None or not contender.keeps_files:
            return None
        found = (each for each in self.reused.training if (each.name, each.shape) == (workload, shape))
        return next((each.contender(contender.name).cold for each in found), None)


@dataclass(frozen=True, slots=True)
class Display:
    """A progress bar for the step that is under way, below the one that counts workloads."""

    progress: Progress
    task: TaskID

    def wait(self, worker: Worker, step: str, budget: float) -> Any:
        """The worker's answer; the bar shows the seconds that passed of the `budget`. Raises `WorkerError`."""
        self.progress.reset(self.task, total=budget, description=step)
        start = time.monotonic()
        while not worker.ready(POLL_SECONDS) and time.monotonic() - start < budget:
            self.progress.update(self.task, completed=time.monotonic() - start)
        return worker.answer(timeout=0.0)

    def steps(self, step: str, total: int) -> Callable[[], None]:
        """A function that advances the bar by one of `total`."""
        self.progress.reset(self.task, total=total, description=step)
        return lambda: self.progress.advance(self.task)


def measure_workload(workload: Workload, plan: Plan, progress: Progress) -> WorkloadResult:
    """Cold compile of each contender in turn, warm calls of all in rounds, then dsjit's outputs at every shape."""
    display = Display(progress, progress.add_task(workload.title, total=None))
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        results: dict[str, ContenderResult] = {}
        for contender in plan.contenders:
            result, worker = _start(workload, contender, plan, display, stack)
            results[contender.name] = result
            if worker is not None:
                workers[contender.name] = worker
        if workload.varied:
            _varied_rounds(workload, plan, display, workers, results)
        else:
            advance = display.steps(f"{workload.title}: warm calls", plan.rounds)
            for _ in range(plan.rounds):
                for name, worker in workers.items():
                    results[name].rounds.append(statistics.median(worker.measure()))
                advance()
    checks, check_error = _check(workload, plan, display) if DSJIT in plan.contenders else ([], None)
    progress.remove_task(display.task)
    return WorkloadResult(
        workload.name,
        workload.title,
        workload.shapes[0],
        str(plan.dtype).removeprefix("torch."),
        workload.target,
        list(results.values()),
        checks,
        check_error,
    )


def _varied_rounds(
    workload: Workload,
    plan: Plan,
    display: Display,
    workers: dict[str, Worker],
    results: dict[str, ContenderResult],
) -> None:
    """Warm up on inputs, then time rounds of others; a round counts with its mean, whatever was compiled in it."""
    warm_up = range(1, 1 + WARM_UP_CALLS)
    for name in list(workers):
        workers[name].begin(measure_varied, plan.dtype, warm_up)
        try:
            calls: VariedCalls = display.wait(workers[name], f"{workload.title}: {name}, warming up", plan.budget)
            results[name].warm_up.append(calls)
        except WorkerError as error:
            results[name] = replace(results[name], error=str(error))
            del workers[name]
    advance = display.steps(f"{workload.title}: rounds of new inputs", plan.rounds)
    for number in range(plan.rounds):
        start = warm_up.stop + number * VARIED_CALLS
        for name, worker in workers.items():
            worker.begin(measure_varied, plan.dtype, range(start, start + VARIED_CALLS))
            calls = worker.answer(timeout=plan.budget)
            results[name].varied.append(calls)
            results[name].rounds.append(statistics.mean(calls.seconds))
        advance()


def _start(
    workload: Workload, contender: Contender, plan: Plan, display: Display, stack: ExitStack
) -> tuple[ContenderResult, Worker | None]:
    earlier = plan.earlier(workload, contender)
    worker = start_worker(workload.name, contender, plan, earlier is not None, stack)
    worker.begin(measure_cold, plan.dtype)
    try:
        cold: Cold = display.wait(worker, f"{workload.title}: {contender.title}, compiling", plan.budget)
    except WorkerError as error:
        return ContenderResult(contender.name, earlier, earlier is not None, error=str(error)), None
    return ContenderResult(contender.name, earlier or cold, reused=earlier is not None), worker


def start_worker(workload: str, contender: Contender, plan: Plan, keep_files: bool, stack: ExitStack) -> Worker:
    """A process for one contender, which `stack` ends. keep_files: of an earlier run."""
    cache = plan.cache / workload / contender.name
    if not keep_files:
        shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    return stack.enter_context(Worker(workload, contender.name, str(cache), plan.threads))


def _check(workload: Workload, plan: Plan, display: Display) -> tuple[list[ShapeCheck], str | None]:
    checks: list[ShapeCheck] = []
    for dtype in (each for each in plan.check_dtypes if each in workload.tolerances):
        with Worker(workload.name, DSJIT.name, str(plan.cache), plan.threads) as worker:
            worker.begin(check_shapes, dtype)
            try:
                checks += display.wait(worker, f"{workload.title}: outputs in {dtype}", plan.budget)
            except WorkerError as error:
                return checks, str(error)
    return checks, None


def measure_overheads(plan: Plan, progress: Progress) -> list[Overhead]:
    """What dsjit adds to a warm call. Raises `WorkerError`."""
    display = Display(progress, progress.add_task("cost of a call", total=None))
    with Worker("overhead", DSJIT.name, str(plan.cache), plan.threads) as worker:
        worker.begin(call_overheads)
        overheads: list[Overhead] = display.wait(worker, "cost of a call", plan.budget)
    progress.remove_task(display.task)
    return overheads
