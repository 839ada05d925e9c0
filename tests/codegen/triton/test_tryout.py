"""A machine is tried out before it is used."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dsjit.codegen.triton.code import GpuCode
from dsjit.codegen.triton.tryout import check_launches
from dsjit.errors import BackendError
from tests.codegen.triton.machines import InterpretingDriver, interpreting_machine


def test_a_machine_that_launches_as_it_should_is_taken() -> None:
    driver = InterpretingDriver()
    check_launches(interpreting_machine(driver))
    assert [name for name, _ in driver.launched] == ["tried_out"]


class Confused(InterpretingDriver):
    """Mixes up two buffers of one size."""

    def launch(self, code: GpuCode, programs: int, words: Sequence[int]) -> None:
        x, w, y, *rest = words
        super().launch(code, programs, (y, w, x, *rest))


def test_a_machine_that_gives_wrong_numbers_is_refused() -> None:
    with pytest.raises(BackendError, match="a kernel that was tried out on cpu gave wrong numbers"):
        check_launches(interpreting_machine(Confused()))
