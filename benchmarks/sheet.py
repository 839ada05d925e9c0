"""A table of a report, and how its numbers are spelled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dsjit.api.stats import Counters

__all__ = [
    "MISSING",
    "Sheet",
    "compiled_sheet",
    "mebibytes",
    "microseconds",
    "milliseconds",
    "percent",
    "text_of",
    "times",
]

MISSING = "-"


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table with its title and a paragraph on how to read it. Every row has a cell for each column."""

    title: str
    text: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def text_of(value: float | None, spell: Callable[[float], str]) -> str:
    return MISSING if value is None else spell(value)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}" if seconds < 0.01 else f"{seconds * 1e3:.1f}"


def microseconds(seconds: float) -> str:
    us = seconds * 1e6
    return f"{us:.1f}" if us >= 1 else f"{us:.2f}"


def times(ratio: float) -> str:
    return f"{ratio:.2f}x"


def mebibytes(count: float) -> str:
    return f"{count / 2**20:.1f}"


def percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def compiled_sheet(title: str, calls: str, counted: Iterable[tuple[str, Counters | None]]) -> Sheet:
    """What dsjit compiled for each workload. calls: which were counted, in words."""
    rows = []
    for label, counters in counted:
        if counters is not None:
            reasons = "; ".join(f"{reason} ({count})" for reason, count in counters.eager_reasons.items())
            figures = [counters.kernels_generated, counters.kernels_reused, counters.ops_in_kernels]
            eager = str(counters.calls_eager) + (f": {reasons}" if reasons else "")
            rows.append((label, str(counters.calls_compiled), eager, *map(str, figures), str(counters.ops_in_library)))
    return Sheet(
        title,
        f"`dsjit.stats()` after {calls}; the first call runs eagerly, under the tracer.",
        (
            "workload",
            "calls compiled",
            "calls eager",
            "kernels",
            "kernels reused",
            "ops in kernels",
            "ops in library calls",
        ),
        rows,
    )
