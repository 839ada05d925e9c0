"""Every deliberate miscompile is caught by `dsjit.verify`, and blamed on the right op and line."""

from __future__ import annotations

import pytest
import torch

import dsjit
from tests.miscompiles.cases import MISCOMPILES
from tests.miscompiles.harness import Miscompile, judge


def name(miscompile: Miscompile) -> str:
    return miscompile.name


@pytest.mark.parametrize("miscompile", MISCOMPILES, ids=name)
def test_it_is_caught_and_localised(miscompile: Miscompile) -> None:
    outcome = judge(miscompile)
    assert outcome.caught
    assert outcome.localised, outcome.report.blame


@pytest.mark.parametrize("miscompile", MISCOMPILES, ids=name)
def test_without_the_mistake_the_program_is_compiled_and_right(miscompile: Miscompile) -> None:
    torch.manual_seed(0)
    program = miscompile.program
    with torch.no_grad():
        calls = [(args, {}) for args in miscompile.calls()]
        report = dsjit.verify_calls(program() if isinstance(program, type) else program, calls)
    assert report.ok, report
    assert "compiled" in report.calls


def test_names_are_used_once() -> None:
    names = [miscompile.name for miscompile in MISCOMPILES]
    assert len(set(names)) == len(names) >= 40


@pytest.mark.parametrize("name", ["sum_identity", "simplify_scalar", "kernel_mixed_up", "contracted"])
def test_the_reproducer_is_short_and_shows_the_difference_only_as_long_as_the_mistake_is_there(name: str) -> None:
    miscompile = next(each for each in MISCOMPILES if each.name == name)
    outcome = judge(miscompile)
    assert outcome.report.blame is not None
    text = outcome.report.blame.reproducer
    assert 0 < len(text.splitlines()) <= 30
    namespace: dict[str, object] = {"__name__": "reproducer"}
    exec(compile(text, "reproducer.py", "exec"), namespace)
    (function,) = [each for each in namespace.values() if type(each).__name__ == "Jitted"]
    inputs = namespace["inputs"]
    assert isinstance(inputs, list)
    with torch.no_grad():
        assert dsjit.verify(function, *inputs).ok
        with miscompile.breaks():
            assert not dsjit.verify(function, *inputs).ok


@pytest.mark.parametrize("name", ["sum_identity", "simplify_scalar", "cat_offsets"])
def test_the_first_bad_rewrite_is_named(name: str) -> None:
    blame = judge(next(each for each in MISCOMPILES if each.name == name)).report.blame
    assert blame is not None
    assert {"sum_identity": "aten.sum", "simplify_scalar": "pass simplify", "cat_offsets": "aten.cat"}[
        name
    ] in blame.rewrite
