"""`python -m tests.miscompiles [NAME ...]`: a table of the deliberate miscompiles and how `dsjit.verify` does on each.

Exit status: 0 when all are caught, 1 otherwise.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from tests.miscompiles.cases import MISCOMPILES
from tests.miscompiles.harness import judge


def main(names: list[str]) -> int:
    table = Table("miscompile", "what", "caught", "blamed", "op", "line", "rewrite", "lines of reproducer", "s")
    chosen = [each for each in MISCOMPILES if not names or each.name in names]
    outcomes = []
    console = Console()
    for each in chosen:
        console.print(each.name, style="dim")
        outcome = judge(each)
        outcomes.append(outcome)
        blame = outcome.report.blame
        rewrite = blame.rewrite.partition(":")[0] if blame else ""
        lines = str(len(blame.reproducer.splitlines())) if blame and blame.reproducer else ""
        table.add_row(
            each.name, each.what, _mark(outcome.caught), f"{blame.stage}: {blame.op}" if blame else "",
            _mark(outcome.op_found), _mark(outcome.line_found), rewrite, lines, f"{outcome.seconds:.1f}",
        )  # fmt: skip
    console.print(table)
    caught = sum(outcome.caught for outcome in outcomes)
    localised = sum(outcome.localised for outcome in outcomes)
    console.print(f"{len(outcomes)} miscompiles: {caught} caught, {localised} localised to the op and the line")
    return 0 if caught == len(outcomes) else 1


def _mark(good: bool) -> str:
    return "yes" if good else "NO"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
