"""Every conformance program is equal to eager in everything, and stays compiled as it claims."""

from __future__ import annotations

from typing import Final

import pytest

from tests.conformance.harness import Program, collect, judge
from tests.conformance.pending import PENDING

PROGRAMS: Final = collect()
FEWEST: Final = 120
SHARE: Final = 0.9


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_is_as_eager_and_stays_compiled(program: Program) -> None:
    verdict = judge(program)
    assert not verdict.differences, "\n".join(verdict.differences[:12])
    if program.name in PENDING:
        assert program.compiled, f"{program.name} makes no claim: remove it from tests/conformance/pending.py"
        assert not verdict.compiled, f"{program.name} stays compiled: remove it from tests/conformance/pending.py"
    elif program.compiled:
        assert verdict.compiled, f"equal, but not compiled: {verdict.reason}"


def test_there_are_enough_programs_and_most_must_stay_compiled() -> None:
    claimed = [program for program in PROGRAMS.values() if program.compiled]
    stay = [program for program in claimed if program.name not in PENDING]
    print(f"{len(PROGRAMS)} programs: {len(claimed)} must stay compiled, {len(stay)} do")
    assert len(PROGRAMS) >= FEWEST
    assert len(claimed) >= SHARE * len(PROGRAMS)


def test_pending_names_are_names_of_programs() -> None:
    assert sorted(PENDING - PROGRAMS.keys()) == []
