"""What `dsjit.verify` found: printable, and data."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dsjit.oracle.measure import Measure

__all__ = ["THE_CALL", "Blame", "Comparison", "Verification"]

THE_CALL: Final = "the call"
"""The path of what is no object: an exception."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One place: a tensor of the result, of an argument, or of the function's state; or another object there.

    path: `result[0]`, `args[1]`, `function.norm.running_mean`. call: the number of the call after which, from 0.
    kind: dtype, shape; the type of what is no tensor. exact: whether every bit has to be eager's. values: how far
    apart (None for what is no tensor, and where shapes differ). problems: what is not as it must be; empty when equal.
    """

    path: str
    call: int
    kind: str
    exact: bool
    values: Measure | None
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class Blame:
    """The part of the compiler that is wrong. stage: "capture", or the kind of an `oracle.fault.Fault`. name: the pass,
    the kernel, or where in memory. op, file, line: the first wrong op, and the user's line that it is from.

    rewrite: the first bad rewrite, as `DSJIT_FUEL` counts them, of how many; empty when no rewrite is to blame.
    reproducer: the text of a Python file that shows the difference; empty when it takes the function itself.
    """

    stage: str
    name: str
    op: str
    file: str
    line: int
    text: str
    rewrite: str = ""
    reproducer: str = ""

    def __str__(self) -> str:
        lines = [f"{self.stage} {self.name}", f"{self.op} at {self.file}:{self.line}", self.text]
        if self.rewrite:
            lines.append(f"first bad rewrite: {self.rewrite}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of `dsjit.verify`.

    name: of the function. seed: what torch was seeded with before each call. calls: how each of them ran, "traced",
    "compiled", or "eager: " and why. comparisons: all that was compared after the last call, and all that differed
    before. precise: why there was no reference in double precision, if so. raises: eager's exception, of the last call.
    blame: what is wrong, if something is.
    """

    name: str
    seed: int
    calls: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    precise: str = ""
    raises: str = ""
    blame: Blame | None = None

    @property
    def ok(self) -> bool:
        """Whether everything is as eager has it."""
        return not self.differences

    @property
    def differences(self) -> tuple[Comparison, ...]:
        return tuple([each for each in self.comparisons if not each.ok])

    @property
    def compiled(self) -> bool:
        """Whether a compiled program answered the last call: if not, it was eager that was compared with eager."""
        return bool(self.calls) and self.calls[-1] == "compiled"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON (infinities are floats)."""
        found = dataclasses.asdict(self)
        return found | {"ok": self.ok, "compiled": self.compiled}

    def __str__(self) -> str:
        stream = io.StringIO()
        self.print(Console(file=stream, width=120, force_terminal=False))
        return stream.getvalue()

    def print(self, console: Console) -> None:
        """Print to a rich Console."""
        verdict = "the same as eager" if self.ok else f"{len(self.differences)} differences from eager"
        console.print(f"{escape(self.name)}: {verdict} (seed {self.seed}; calls: {escape(', '.join(self.calls))})")
        if not self.compiled and self.ok:
            console.print("The last call did not run compiled: nothing of the compiler was put to the test.")
        if self.raises:
            console.print(f"It raises {escape(self.raises)}")
        if self.precise:
            console.print(f"No reference in double precision: {escape(self.precise)}")
        console.print(self._table())
        for each in self.differences:
            for problem in each.problems:
                console.print(f"{escape(each.path)} after call {each.call}: {escape(problem)}", soft_wrap=True)
        if self.blame is not None:
            console.print("what is wrong:")
            for line in str(self.blame).splitlines():
                console.print(f"  {escape(line)}", soft_wrap=True)
            if self.blame.reproducer:
                console.print("a program that shows it:\n")
                console.print(escape(self.blame.reproducer), soft_wrap=True, highlight=False)

    def _table(self) -> Table:
        table = Table(title="errors are the largest of a tensor, against double precision", title_justify="left")
        columns = ("place", "type", "equal", "max ulp", "abs error", "eager's", "rel error", "eager's")
        for heading in columns:
            table.add_column(heading, overflow="fold")
        for each in self.comparisons:
            if each.values is None and each.ok:
                continue
            table.add_row(escape(each.path), escape(each.kind), *_cells(each))
        return table


def _cells(each: Comparison) -> tuple[str, ...]:
    equal = "no" if not each.ok else "to the bit" if each.values and not each.values.differing else "yes"
    if each.values is None:
        return equal, "", "", "", "", ""
    values = each.values
    numbers = (values.our_error, values.eager_error, values.our_relative, values.eager_relative)
    shown = ["" if number is None else f"{number:.2g}" for number in numbers]
    return equal, f"{values.max_ulp:.0f}", *shown
