"""Whole programs with `backend="triton-interpret"`: random ones, and models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from torch import nn

import dsjit
from tests.api.checks import call_compiled
from tests.models.test_models import ResidualNet, bert, built, gpt2, llama, tensors
from tests.property.programs import EXACT, ROUNDED, SMOOTH, UNARY, VIEWS, Program, inputs, programs
from tests.property.test_programs import compare

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@settings(max_examples=30)
@given(programs([*EXACT, *UNARY, *VIEWS]), inputs())
def test_exact_programs_are_bitwise_eagers(program: Program, arguments: list[torch.Tensor]) -> None:
    expected = program(*arguments)
    jitted = dsjit.jit(program, fullgraph=True, backend="triton-interpret")
    compare(jitted(*arguments), expected)
    compare(call_compiled(jitted, *arguments), expected)


@settings(max_examples=20)
@given(programs([*ROUNDED, *SMOOTH, *VIEWS]), inputs())
def test_other_programs_are_as_close_as_rounding_allows(program: Program, arguments: list[torch.Tensor]) -> None:
    report = dsjit.verify(dsjit.jit(program, backend="triton-interpret"), *arguments)
    assert report.ok and report.compiled, report


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [bert, gpt2, llama, ResidualNet])
def test_the_kernels_of_a_model_equal_the_definition(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    image = make is ResidualNet
    given = torch.randn(2, 3, 16, 16, dtype=dtype) if image else torch.arange(10).reshape(2, 5)
    found: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for backend in ("llvm", "triton-interpret"):
            jitted = dsjit.jit(built(make, dtype), backend=backend, fullgraph=True)
            jitted(given)
            found[backend] = tensors(jitted(given))
    for one, other in zip(*found.values(), strict=True):
        if dtype is torch.bfloat16:
            torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-7)
        else:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)
