"""`assert_equivalent`: for users' own tests."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings

from dsjit.errors import NotEquivalentError
from dsjit.testing import assert_equivalent, filled
from dsjit.testing.strategies import variations
from tests.miscompiles.cases import MISCOMPILES

model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.GELU()).eval().requires_grad_(False)


def test_a_right_function_passes_and_the_report_comes_back() -> None:
    assert assert_equivalent(model, torch.randn(3, 8)).ok


def test_a_wrong_one_fails_with_the_report_and_a_reproducer() -> None:
    miscompile = next(each for each in MISCOMPILES if each.name == "sub_swapped")
    with miscompile.breaks(), pytest.raises(AssertionError) as caught:
        assert_equivalent(miscompile.program, *miscompile.calls()[0])
    assert isinstance(caught.value, NotEquivalentError)
    for part in ("aten.sub.Tensor at ", "seed 0", "@dsjit.jit"):
        assert part in str(caught.value)


def test_a_missing_guard_shows_with_other_arguments_in_between() -> None:
    miscompile = next(each for each in MISCOMPILES if each.name == "guard_missing")
    with miscompile.breaks():
        assert_equivalent(miscompile.program, torch.ones(3), 2.0)
        with pytest.raises(NotEquivalentError, match="its guard did not notice"):
            assert_equivalent(miscompile.program, torch.ones(3), 2.0, also=[(torch.ones(3), 3.0)])


@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
def test_a_call_that_runs_eagerly_fails_unless_that_is_allowed() -> None:
    def shaken(x):
        return x * random.random()

    with pytest.raises(NotEquivalentError, match="draws from Python's random"):
        assert_equivalent(shaken, torch.ones(3))
    assert_equivalent(shaken, torch.ones(3), must_compile=False)


def test_keywords_are_the_functions() -> None:
    assert_equivalent(lambda x, *, scale: x * scale, torch.ones(3), scale=2.0)


@settings(max_examples=15)
@given(variations(torch.randn(3, 8)))
def test_a_model_is_property_tested_in_five_lines(inputs: list[torch.Tensor]) -> None:
    assert_equivalent(model, *inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("strides", [None, (1, 3), (8, 2)])
def test_filled_tensors_have_the_layout_asked_for(dtype: torch.dtype, strides: tuple[int, int] | None) -> None:
    tensor = filled((3, 4), dtype, strides, offset=2)
    assert tensor.dtype is dtype and tensor.shape == (3, 4)
    assert tensor.stride() == (strides or (4, 1)) and tensor.storage_offset() == 2
