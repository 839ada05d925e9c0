"""The command line: `python -m benchmarks` runs, `python -m benchmarks render FILE` writes docs/benchmarks.md."""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.contenders import CONTENDERS, DSJIT, Contender, cpp_compiler
from benchmarks.machine import Machine, describe
from benchmarks.report import broken_promises, markdown, print_report, summary
from benchmarks.results import Report, WorkloadResult, load, save
from benchmarks.session import Plan, measure_overheads, measure_workload
from benchmarks.training.catalog import TRAINING
from benchmarks.training.report import summary as training_summary
from benchmarks.training.results import TrainingResult
from benchmarks.training.session import measure_training
from benchmarks.worker import WorkerError
from benchmarks.workloads.catalog import WORKLOADS

__all__ = ["main"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDS, QUICK_ROUNDS = 15, 3
OVERHEAD = "overhead"
"""What `--only` calls the cost of a warm call beside its kernels."""

FILE_WIDTH = 180
"""Columns of the tables when they go to a file."""
DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def main(arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit status: 1 if dsjit failed, its outputs differ or calls ran eagerly."""
    if arguments[:1] == ["render"]:
        options = _render_parser().parse_args(arguments[1:])
        options.output.write_text(markdown(options.report))
        return 0
    return _run(_run_parser().parse_args(arguments), arguments)


def _run_parser() -> argparse.ArgumentParser:
    names = [*(each.name for each in WORKLOADS), *(each.name for each in TRAINING), OVERHEAD]
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument("--no-torch-compile", action="store_true", help="eager and dsjit only")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the timed calls (default float32)")
    parser.add_argument("--no-checks", action="store_true", help="do not compare outputs at every shape")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    parser.add_argument("--budget", type=float, default=900.0, help="most seconds a compile may take (default 900)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument(
        "--reuse",
        type=_report_file,
        metavar="FILE",
        help="take torch.compile's cold figures from this earlier --json FILE",
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep torch.compile's files here, which makes --reuse quick"
    )
    return parser


def _render_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks render", description="Write a run's tables as Markdown.")
    parser.add_argument("report", type=_report_file, metavar="FILE", help="what --json wrote")
    parser.add_argument("--output", type=Path, default=DOCUMENT, help=f"default {DOCUMENT.name} in docs/")
    return parser


def _report_file(text: str) -> Report:
    try:
        return load(Path(text))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text} is not a report that --json wrote ({error!r})") from None


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    dtype = DTYPES[options.dtype]
    chosen = [workload for workload in WORKLOADS if workload.name in options.only]
    workloads = [workload for workload in chosen if dtype in workload.tolerances]
    chosen_training = [workload for workload in TRAINING if workload.name in options.only]
    training = chosen_training if dtype is torch.float32 else []
    names = [each.name for each in chosen if each not in workloads]
    for name in names + [each.name for each in chosen_training if each not in training]:
        console.print(f"{name} is not measured in {options.dtype}", style="yellow")
    machine = describe(options.threads)
    with (
        tempfile.TemporaryDirectory(prefix="benchmarks-") as scratch,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        ) as progress,
    ):
        plan = Plan(
            contenders=_contenders(options, console),
            dtype=dtype,
            check_dtypes=() if options.no_checks else tuple(DTYPES.values()),
            rounds=QUICK_ROUNDS if options.quick else ROUNDS,
            budget=options.budget,
            threads=options.threads,
            cache=options.cache or Path(scratch),
            reused=_reused(options.reuse, machine, console),
        )
        overall = progress.add_task("workloads", total=len(workloads) + len(training))
        report = Report(machine, shlex.join(["python", "-m", "benchmarks", *arguments]), _now(), [])
        for workload in workloads:
            result = measure_workload(workload, plan, progress)
            report.workloads.append(result)
            console.print(summary(result), markup=False, highlight=False, soft_wrap=True)
            progress.advance(overall)
            if options.json:
                save(report, options.json)
        for each in training:
            trained = measure_training(each, plan, progress)
            report.training.append(trained)
            console.print(training_summary(trained), markup=False, highlight=False, soft_wrap=True)
            progress.advance(overall)
            if options.json:
                save(report, options.json)
        if OVERHEAD in options.only:
            try:
                report.overheads.extend(measure_overheads(plan, progress))
            except WorkerError as error:
                report.errors.append(str(error))
    if options.json:
        save(report, options.json)
    print_report(report, console)
    for line in broken_promises(report):
        console.print(f"broken promise: {line}", style="bold red")
    return int(any(map(_wrong, report.workloads)) or any(map(_failed_training, report.training)))


def _wrong(result: WorkloadResult) -> bool:
    failed = result.contender(DSJIT.name).error or result.check_error
    return result.equal is False or result.compiled is False or failed is not None


def _failed_training(result: TrainingResult) -> bool:
    return (result.contender(DSJIT.name).error or result.check_error) is not None


def _contenders(options: argparse.Namespace, console: Console) -> tuple[Contender, ...]:
    if not options.no_torch_compile and cpp_compiler() is not None:
        return CONTENDERS
    if not options.no_torch_compile:
        console.print("no C++ compiler found: torch.compile is left out", style="yellow")
    return tuple(contender for contender in CONTENDERS if not contender.keeps_files)


def _reused(report: Report | None, machine: Machine, console: Console) -> Report | None:
    if report is None:
        return None
    then = report.machine
    if (then.processor, then.packages, then.threads) == (machine.processor, machine.packages, machine.threads):
        return report
    console.print("the earlier run is of another machine or other versions: nothing is reused", style="yellow")
    return None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
