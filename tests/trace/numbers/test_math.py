"""Numbers from tensors that Python computes with: functions of `math`, powers, remainders."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from math import sqrt as root
from pathlib import Path
from typing import Any

import pytest
import torch

import dsjit
from dsjit.ops.python_numbers import compute
from dsjit.trace.effects.stand_in import StandIn

NUMBERS = (2.0, 0.5, 3.75, 1.0, 7.0)

COMPUTED: dict[str, Callable[[float], Any]] = {
    "sqrt": lambda s: math.sqrt(s),
    "exp": lambda s: math.exp(-s),
    "log": lambda s: math.log(s),
    "log of a base": lambda s: math.log(s, 2),
    "pow": lambda s: math.pow(s, 2),
    "atan2": lambda s: math.atan2(1.0, s),
    "nested": lambda s: math.cos(math.sin(s) * math.pi) / 2,
    "power": lambda s: s**3,
    "base": lambda s: 0.9**s,
    "base of an expression": lambda s: 1 - 0.9 ** (s + 1),
    "floor division": lambda s: s // 0.3,
    "remainder": lambda s: 7.5 % s,
}


def play(function: Callable[[torch.Tensor], Any], *numbers: float) -> int:
    """Every call gives eager's result, or raises what eager raises. Returns the traces that it took."""
    jitted = dsjit.jit(function)
    dsjit.reset_stats()
    with torch.no_grad():
        for number in numbers:
            t = torch.tensor(number, dtype=torch.float64)
            try:
                expected = function(t)
            except (ArithmeticError, ValueError) as error:
                with pytest.raises(type(error), match=str(error)):
                    jitted(t)
                continue
            found = jitted(t)
            assert repr(found) == repr(expected)
    return dsjit.stats().total.traces


@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
def test_python_computes_the_same_on_every_run(compute: Callable[[float], Any]) -> None:
    assert play(lambda t: (compute(t.item()), t * compute(t.item())), *NUMBERS) == 1


def test_tensors_of_one_element_are_numbers_for_math() -> None:
    assert play(lambda t: t + math.sqrt(t), *NUMBERS) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda t: t * 2 if math.isnan(t.item()) else t,
        lambda t: t * 2 if math.isinf(t) else t,
        lambda t: t * 2 if not math.isfinite(t.item() * 2) else t,
    ],
)
def test_questions_about_a_number_are_branches(function: Callable[[torch.Tensor], Any]) -> None:
    assert play(function, 1.0, math.nan, math.inf, -math.inf, 2.0, 0.0) == 2


def test_what_raises_is_as_eager() -> None:
    assert play(lambda t: math.sqrt(t.item()), 4.0, -1.0, 9.0, -2.0) <= 3
    assert play(lambda t: 1.0 % t.item(), 4.0, 0.0, 3.0) <= 2
    assert play(lambda t: 2.0 ** t.item(), 4.0, 1e6, 3.0) <= 2


def test_a_caught_error_is_the_outcome_of_that_number_alone() -> None:
    def f(t: torch.Tensor) -> Any:
        try:
            return t * math.log(t.item())
        except ValueError:
            return t - 1

    play(f, 4.0, 0.0, 3.0, -1.0, 2.0)
    play(f, 0.0, 4.0, -1.0, 3.0, 0.0)


def test_functions_by_other_names_and_complex_results_are_right() -> None:
    play(lambda t: t * root(t.item()), *NUMBERS)
    play(lambda t: str(t.item() ** 0.5), 4.0, -4.0, 9.0)


def test_the_module_is_what_it_was_afterwards() -> None:
    play(lambda t: math.sqrt(t.item()), 4.0)
    assert not any(isinstance(entry, StandIn) for entry in vars(math).values())


def test_a_module_that_is_imported_in_the_call_gets_the_functions_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dsjit_test_imported_in_a_call.py").write_text("from math import sqrt")
    monkeypatch.syspath_prepend(tmp_path)

    def f(t: torch.Tensor) -> Any:
        first = math.sqrt(t.item())
        import dsjit_test_imported_in_a_call as imported  # noqa: PLC0415

        return first + imported.sqrt(t.item()) + math.sqrt(t.item())

    original = math.sqrt
    jitted, t = dsjit.jit(f), torch.tensor(4.0)
    with torch.no_grad():
        assert [jitted(t) for _ in range(3)] == [6.0] * 3
    assert sys.modules["dsjit_test_imported_in_a_call"].sqrt is original is math.sqrt


def test_compute_takes_numbers_and_tensors_of_one() -> None:
    two = torch.tensor(2.0, dtype=torch.float64)
    assert compute(float, operator.pow, two, 0.5).item() == 2.0**0.5
    with pytest.raises(ArithmeticError, match="no float"):
        compute(float, operator.pow, -two, 0.5)
