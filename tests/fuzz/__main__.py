"""A long run of the fuzzer: `python -m tests.fuzz --programs 100000 --seed 0`.

Program number n of a seed is always the same, and a run goes on where the last one of its seed ended (`--folder` holds
its state, and a file for each difference: reduced, with the differences on top, and runnable by itself). It begins with
the programs that differed then, which may have been mended since. What crashes the process is a difference, too: each
batch of programs runs in a process of its own.

    python -m tests.fuzz --seed 0 --only 1234       play one program, print it and what differs
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.fuzz.draw import numbered_program
from tests.fuzz.play import Played, play_program
from tests.fuzz.reduce import reduced

BATCH = 4000
"""Programs to a process: torch is imported anew in each."""


@dataclass(slots=True)
class Run:
    """What a long run has done so far. next: the first program that was not played. seconds: of work.

    differing: numbers of programs that differ. mended: of those that did once. judged: tensors that differ in their
    last bits, and are right.
    """

    seed: int
    next: int = 0
    seconds: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)
    judged: int = 0
    differing: list[int] = field(default_factory=list)
    mended: list[int] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", type=int, default=1000, help="how many, those of earlier runs included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--only", type=int, help="play this program of the seed, and print it")
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--again", action="store_true", help="only play the programs that differed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only is not None:
        return _play_one(options.seed, options.only)
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"seed-{options.seed}.json"
    run = Run(**json.loads(path.read_text())) if path.exists() else Run(options.seed)
    if options.again:
        _play_again(run, path)
        return 1 if run.differing else 0
    if options.batch is not None:
        _play_batch(run, min(options.batch, options.programs), options.folder, path)
        return 0
    _play_all(run, options.programs, options.folder, path)
    run = Run(**json.loads(path.read_text()))
    _report(run, Console())
    return 1 if run.differing else 0


def _play_one(seed: int, number: int) -> int:
    program = numbered_program(seed, number)
    print(program.source)
    played = play_program(program)
    print("\n".join(played.differences) or "no difference")
    return 1 if played.differences else 0


def _play_all(run: Run, programs: int, folder: Path, path: Path) -> None:
    own = [sys.executable, "-m", "tests.fuzz", "--seed", str(run.seed), "--folder", str(folder)]
    if run.differing:
        subprocess.run([*own, "--again"], check=False)
        run = Run(**json.loads(path.read_text()))
    columns = (TextColumn("programs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as progress:
        task = progress.add_task("programs", total=programs, completed=run.next)
        while run.next < programs:
            arguments = ["--programs", str(programs), "--batch", str(run.next + BATCH)]
            finished = subprocess.run([*own, *arguments], check=False)
            run = Run(**json.loads(path.read_text()))
            if finished.returncode:  # it died on program `next`
                _keep(run, run.next, f"the process ended with {finished.returncode}", folder)
                run.next += 1
                _save(run, path)
            progress.update(task, completed=run.next)


def _play_again(run: Run, path: Path) -> None:
    for number in list(run.differing):
        if not _played(run.seed, number).differences:
            run.differing.remove(number)
            run.mended.append(number)
    _save(run, path)


def _play_batch(run: Run, end: int, folder: Path, path: Path) -> None:
    calls, start = Counter(run.calls), time.monotonic()
    done = run.seconds
    gc.freeze()  # torch and dsjit themselves need not be searched again and again
    gc.set_threshold(20_000, 20, 20)
    for number in range(run.next, end):
        run.next = number
        _save(run, path)
        played = _played(run.seed, number)
        calls.update(played.ways)
        run.judged += played.judged
        run.calls, run.seconds = dict(calls), done + time.monotonic() - start
        if played.differences:
            _keep(run, number, "\n".join(played.differences), folder)
    run.next = end
    _save(run, path)


def _played(seed: int, number: int) -> Played:
    try:
        return play_program(numbered_program(seed, number))
    except Exception as error:  # of the fuzzer itself, or of the state that a call has left
        return Played((f"the play raises {type(error).__name__}: {error}",))


def _save(run: Run, path: Path) -> None:
    """Whole, or not at all: a run may be stopped at any moment."""
    written = path.with_suffix(".tmp")
    written.write_text(json.dumps(asdict(run)))
    written.replace(path)


def _keep(run: Run, number: int, text: str, folder: Path) -> None:
    """Save a program that differs, as small as it can be made."""
    run.differing.append(number)
    program = numbered_program(run.seed, number)
    if not text.startswith("the process"):
        program = reduced(program)
    told = "\n".join(f"# {line}" for line in [f"seed {run.seed}, program {number}", *text.splitlines()])
    (folder / f"seed-{run.seed}-{number}.py").write_text(f"{told}\n{program.source}")


def _report(run: Run, console: Console) -> None:
    table = Table(
        "seed", "programs", "calls compiled", "traced", "eager", "in the last bits", "mended", "differing", "programs/s"
    )
    calls = Counter(run.calls)
    ways = (calls["compiled"], calls["traced"], calls["eager"])
    counts = (run.seed, run.next, *ways, run.judged, len(run.mended), len(run.differing))
    table.add_row(*map(str, counts), f"{run.next / max(run.seconds, 1e-9):.1f}")
    console.print(table)
    for number in run.differing:
        console.print(f"differs: python -m tests.fuzz --seed {run.seed} --only {number}")


if __name__ == "__main__":
    sys.exit(main())
