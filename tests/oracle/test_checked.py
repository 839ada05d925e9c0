"""DSJIT_CHECK=2: programs that check themselves on every call, in poisoned memory."""

from __future__ import annotations

import pytest
import torch

from dsjit.api.jitted import Jitted
from dsjit.api.session import Session
from dsjit.config import Environment, Options
from dsjit.errors import VerificationError
from dsjit.oracle.checked import FaultFound
from tests.miscompiles import programs
from tests.miscompiles.cases import MISCOMPILES


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def checked(function, level: int = 2) -> Jitted:
    return Jitted(function, Options(), Session(Environment(check=level)), "f")


def model(x, y):
    a = (x * 2) @ y
    b = torch.softmax(a + a.flip(0), -1)
    x.add_(1)
    return b @ y, torch.dropout(b, 0.5, True), a.argmax(-1)


@pytest.mark.parametrize("level", [1, 2])
def test_a_right_program_passes_and_does_what_it_does_unchecked(level: int) -> None:
    x, y = torch.randn(16, 16), torch.randn(16, 16)
    jitted, plain = checked(model, level), checked(model, 0)
    for seed in range(3):
        torch.manual_seed(seed)
        mine, theirs = x.clone(), x.clone()
        found = jitted(mine, y)
        torch.manual_seed(seed)
        expected = plain(theirs, y)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert torch.equal(mine, theirs)
    assert jitted.counters.calls_compiled == 2


@pytest.mark.parametrize("name", ["sum_identity", "product_short", "cse_key", "taken_over", "overwritten_early"])
def test_a_wrong_one_raises_before_anything_is_written(name: str) -> None:
    miscompile = next(each for each in MISCOMPILES if each.name == name)
    args = miscompile.calls()[0]
    with miscompile.breaks():
        jitted = checked(miscompile.program)
        jitted(*args)
        kept = [tensor.clone() for tensor in args]
        with pytest.raises(FaultFound) as caught:
            jitted(*args)
    assert isinstance(caught.value, VerificationError)
    assert any(op in caught.value.fault.op for op in miscompile.ops)
    assert all(torch.equal(a, b) for a, b in zip(args, kept, strict=True))


def test_memory_that_no_step_has_written_is_poisoned_from_level_1_on() -> None:
    miscompile = next(each for each in MISCOMPILES if each.name == "tail")
    with miscompile.breaks():
        jitted = checked(programs.tail, level=1)
        x = torch.ones(7)
        jitted(x)
        assert torch.isnan(jitted(x)[-1])
