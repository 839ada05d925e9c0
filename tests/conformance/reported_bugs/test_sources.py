"""The reports behind the programs: every one is named, and they come from all the compilers that we learn from."""

from __future__ import annotations

import re
from typing import Final

import pytest

from tests.conformance.harness import Program, collect

PROGRAMS: Final = {name: p for name, p in collect().items() if p.script.__module__.startswith(__package__)}
REPORT: Final = re.compile(r"([\w-]+/[\w-]+)#(\d+)( \([\w ]+\))?: \S")
FEWEST: Final = 45


def report_of(program: Program) -> tuple[str, str]:
    """Repository and number, from the beginning of the docstring."""
    match = REPORT.match(program.script.__doc__ or "")
    assert match, f"the docstring of {program.name} does not begin with `owner/repository#number: what went wrong`"
    return match[1], match[2]


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_names_its_report(program: Program) -> None:
    repository, number = report_of(program)
    assert repository.count("/") == 1
    assert int(number) > 0


def test_there_are_enough_reports_and_from_every_compiler() -> None:
    reports = {report_of(program) for program in PROGRAMS.values()}
    assert len(reports) >= FEWEST
    repositories = {repository for repository, _ in reports}
    assert {"pytorch/pytorch", "jax-ml/jax", "Lightning-AI/lightning-thunder", "tinygrad/tinygrad"} <= repositories
