"""A profile in the terminal."""

from __future__ import annotations

import io
import os
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dsjit.profiler.profile import ProfileData, StepProfile
from dsjit.profiler.units import bytes_text, percent_text, rate_text, time_text

__all__ = ["print_summary", "summary_text"]

ROWS: Final = 12
"""Of each table."""

OTHERS: Final = 6
FINDINGS: Final = 4


def summary_text(data: ProfileData) -> str:
    """What `print_summary` prints, without colours."""
    stream = io.StringIO()
    print_summary(data, Console(file=stream, width=120, force_terminal=False))
    return stream.getvalue()


def print_summary(data: ProfileData, console: Console) -> None:
    """Where the time went, the longest steps and the most expensive lines, and what to look at first."""
    compiled = percent_text(data.attributed_ns / data.compiled_ns) if data.compiled_ns else "none"
    console.print(
        f"{escape(data.title)}: {time_text(data.span_ns)}, {time_text(data.compiled_ns)} of it in compiled programs; "
        f"{compiled} of that on lines of yours",
        highlight=False,
    )
    parts = Table(title="where the time went", title_justify="left")
    for heading in ("part", "time", "share", ""):
        parts.add_column(heading, justify="right" if heading in ("time", "share") else "left")
    for part in data.parts:
        if part.ns > 0:
            parts.add_row(part.name, time_text(part.ns), percent_text(part.share), part.meaning)
    console.print(parts)
    if data.steps:
        console.print(_steps(data))
        console.print(_lines(data))
    if data.sampled:
        console.print(_sampled(data))
    for number, finding in enumerate(data.findings[:FINDINGS], 1):
        console.print(f"{number}. {escape(finding.title)}", style="bold", highlight=False)
        console.print(f"   {escape(finding.text)}", highlight=False)


def _steps(data: ProfileData) -> Table:
    table = Table(title=f"longest of {len(data.steps)} fused ops and library calls", title_justify="left")
    for heading in ("step", "line", "count", "median", "total", "share", "moves", "rate", "of attainable"):
        table.add_column(heading, justify="left" if heading in ("step", "line") else "right", overflow="fold")
    for step in sorted(data.steps, key=lambda step: -step.total_ns)[:ROWS]:
        attained = step.bound_ns / step.median_ns if step.median_ns else 0.0
        table.add_row(
            escape(step.name), escape(_line(step)), str(step.count), time_text(step.median_ns),
            time_text(step.total_ns), percent_text(step.share), bytes_text(step.bytes_read + step.bytes_written),
            _rate(step), percent_text(attained) if step.bound != "nothing" else "",
        )  # fmt: skip
    return table


def _rate(step: StepProfile) -> str:
    if step.bound == "compute":
        return rate_text(step.flop_rate, "FLOP/s")
    return rate_text(step.bandwidth, "B/s") if step.bound == "memory" else ""


def _line(step: StepProfile) -> str:
    main = max(step.ops, key=lambda op: op.share, default=None)
    if main is None or not main.line:
        return ""
    others = len({(op.file, op.line) for op in step.ops}) - 1
    return f"{os.path.basename(main.file)}:{main.line}" + (f" +{others}" if others else "")


def _sampled(data: ProfileData) -> Table:
    table = Table(title="what ran while no program did, by samples", title_justify="left")
    for heading in ("line", "time", "share", "what", "code"):
        table.add_column(heading, justify="right" if heading in ("time", "share") else "left", overflow="ellipsis")
    for line in data.sampled[:OTHERS]:
        table.add_row(
            escape(f"{os.path.basename(line.file)}:{line.line}") if line.line else "", time_text(line.ns),
            percent_text(line.share), f"{line.what}, {line.part}", escape(line.text.strip()),
        )  # fmt: skip
    return table


def _lines(data: ProfileData) -> Table:
    table = Table(title="lines", title_justify="left")
    for heading in ("line", "time", "share", "forward", "backward", "code"):
        table.add_column(heading, justify="left" if heading in ("line", "code") else "right", overflow="ellipsis")
    for line in data.lines[:ROWS]:
        table.add_row(
            escape(f"{os.path.basename(line.file)}:{line.line}"), time_text(line.ns), percent_text(line.share),
            time_text(line.forward_ns), time_text(line.backward_ns), escape(line.text.strip()),
        )  # fmt: skip
    return table
