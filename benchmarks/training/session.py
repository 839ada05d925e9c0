"""Measures a training workload: cold, memory, gradients and loss curves of each contender, then steps in rounds."""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from benchmarks.contenders import EAGER, Contender
from benchmarks.session import Display, Plan, start_worker
from benchmarks.training.results import TrainingFigures, TrainingResult
from benchmarks.training.tasks import (
    gradient_error,
    loss_curve,
    measure_cold_step,
    measure_memory,
    measure_steps,
    save_float64_gradients,
)
from benchmarks.training.workload import TrainingWorkload
from benchmarks.worker import Cold, Worker, WorkerError

__all__ = ["measure_training"]


def measure_training(workload: TrainingWorkload, plan: Plan, progress: Progress) -> TrainingResult:
    """All figures of one workload. A contender that fails is left out from then on, with its error."""
    display = Display(progress, progress.add_task(workload.title, total=None))
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="gradients-") as folder:
        reference, check_error = None, None
        if plan.check_dtypes:
            try:
                reference = _reference(workload, plan, display, Path(folder) / "float64.pt")
            except WorkerError as error:
                check_error = str(error)
        workers: dict[str, Worker] = {}
        results: dict[str, TrainingFigures] = {}
        nudged: list[float] = []
        for contender in (each for each in plan.contenders if each.trains):
            figures, worker = _cold(workload, contender, plan, display, stack)
            results[contender.name] = figures
            if worker is None:
                continue
            try:
                step = f"{workload.title}: {contender.title}"
                worker.begin(measure_memory)
                figures = replace(figures, memory=display.wait(worker, f"{step}, memory", plan.budget))
                if reference is not None and (contender.draws_as_eager or not workload.draws):
                    worker.begin(gradient_error, str(reference))
                    figures = replace(figures, gradient_error=display.wait(worker, f"{step}, gradients", plan.budget))
                    worker.begin(loss_curve, False)
                    figures = replace(figures, losses=display.wait(worker, f"{step}, losses", plan.budget))
                    if contender is EAGER:
                        worker.begin(loss_curve, True)
                        nudged = display.wait(worker, f"{step}, losses, nudged", plan.budget)
                workers[contender.name] = worker
            except WorkerError as error:
                figures = replace(figures, error=str(error))
            results[contender.name] = figures
        _rounds(workload, plan, display, workers, results)
    progress.remove_task(display.task)
    return TrainingResult(
        workload.name,
        workload.title,
        workload.shape,
        workload.saved,
        workload.peak,
        list(results.values()),
        nudged,
        check_error,
    )


def _rounds(
    workload: TrainingWorkload,
    plan: Plan,
    display: Display,
    workers: dict[str, Worker],
    results: dict[str, TrainingFigures],
) -> None:
    """Fills in the rounds of `results`. Who fails is left out from then on."""
    advance = display.steps(f"{workload.title}: steps", plan.rounds)
    for _ in range(plan.rounds):
        for name, worker in list(workers.items()):
            worker.begin(measure_steps)
            try:
                results[name].rounds.append(statistics.median(worker.answer(timeout=plan.budget)))
            except WorkerError as error:
                results[name] = replace(results[name], error=str(error))
                del workers[name]
        advance()


def _cold(
    workload: TrainingWorkload, contender: Contender, plan: Plan, display: Display, stack: ExitStack
) -> tuple[TrainingFigures, Worker | None]:
    earlier = plan.earlier_training(workload.name, workload.shape, contender)
    worker = start_worker(workload.name, contender, plan, earlier is not None, stack)
    worker.begin(measure_cold_step)
    try:
        cold: Cold = display.wait(worker, f"{workload.title}: {contender.title}, compiling", plan.budget)
    except WorkerError as error:
        return TrainingFigures(contender.name, earlier, earlier is not None, error=str(error)), None
    return TrainingFigures(contender.name, earlier or cold, earlier is not None), worker


def _reference(workload: TrainingWorkload, plan: Plan, display: Display, file: Path) -> Path:
    with Worker(workload.name, EAGER.name, str(plan.cache), plan.threads) as worker:
        worker.begin(save_float64_gradients, str(file))
        display.wait(worker, f"{workload.title}: gradients in float64", plan.budget)
    return file
