"""A table of the conformance programs: `python -m tests.conformance [NAME ...]`.

NAME: the beginning of a program's name (`guards`, `guards.a_closure`); all programs without one. Exits 1 on any
difference from eager, and on any program that is neither compiled as it claims nor pending.

`--stand-in`: everything is compiled as for a GPU, and run on a machine that stands for one.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.codegen.triton.machines import InterpretingDriver, cpu_for_a_gpu
from tests.conformance.harness import Verdict, collect, judge
from tests.conformance.pending import PENDING


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="how the names of the programs begin")
    parser.add_argument("--differences", action="store_true", help="print every difference, not the first three")
    parser.add_argument("--stand-in", action="store_true", help="compile for a machine that stands for a GPU")
    options = parser.parse_args()
    chosen = [p for p in collect().values() if not options.names or p.name.startswith(tuple(options.names))]
    driver = InterpretingDriver()
    with cpu_for_a_gpu(driver) if options.stand_in else nullcontext():
        verdicts = [judge(p) for p in track(chosen, description="programs", disable=not sys.stderr.isatty())]
    if options.stand_in:
        print(f"{len(driver.loaded)} GPU kernels were compiled, and {len(driver.launched)} launches interpreted")
    return report(verdicts, None if options.differences else 3)


def report(verdicts: list[Verdict], most: int | None) -> int:
    """Print the table, `most` differences of each program, and the totals; 1 when something is not as it must be."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table("program", "topic", "calls", "compiled", "traces", "eager", "verdict")
    for v in verdicts:
        row = (v.program.name.partition(".")[2], v.program.topic, v.steps, v.ways.compiled, v.ways.traces, v.ways.eager)
        table.add_row(*map(str, row), _outcome(v))
    console.print(table)
    wrong = [v for v in verdicts if v.differences]
    for v in wrong:
        print(f"\nWRONG {v.program.name}")
        for line in v.differences[:most]:
            print(f"  {line}")
    claimed = [v for v in verdicts if v.program.compiled]
    stay = [v for v in claimed if v.compiled]
    share = 100 * len(stay) / max(len(verdicts), 1)
    totals = f"{len(claimed)} must stay compiled, {len(stay)} do ({share:.1f} % of all)"
    print(f"\n{len(verdicts)} programs: {len(wrong)} wrong; {totals}")
    broken = [v for v in claimed if v.compiled == (v.program.name in PENDING)]
    for v in broken:
        told = "compiled, but listed as pending" if v.compiled else "not compiled, and not pending"
        print(f"{told}: {v.program.name}")
    return 1 if wrong or broken else 0


def _outcome(v: Verdict) -> str:
    if v.differences:
        return "[bold red]differs from eager[/]"
    if v.compiled:
        return "[green]compiled[/]"
    pending = "pending, " if v.program.name in PENDING else "" if v.program.compiled else "no claim, "
    return f"{pending}{v.reason}".replace("[", r"\[")


if __name__ == "__main__":
    sys.exit(main())
