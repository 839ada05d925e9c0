"""Chains of ops that leave no bit to chance: eager, the compiled call and the Kernel interpreter agree in every bit.

`tests/fuzz` is for whole programs, with Python around the ops, and judges last bits; here no judge is needed.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dsjit
from tests.api.checks import call_compiled
from tests.property.programs import EXACT, UNARY, VIEWS, Program, inputs, programs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def compare(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, check_stride=b.numel() > 1)
        if b.is_floating_point():
            ordered = ~b.isnan()
            assert torch.equal(a.signbit()[ordered], b.signbit()[ordered])


@given(programs([*EXACT, *UNARY, *VIEWS]), inputs())
def test_arithmetic_selection_casts_and_data_movement_are_bitwise_eagers(
    program: Program, arguments: list[torch.Tensor]
) -> None:
    expected = program(*arguments)
    for backend in ("llvm", "interpreter"):
        jitted = dsjit.jit(program, fullgraph=True, backend=backend)
        compare(jitted(*arguments), expected)
        compare(call_compiled(jitted, *arguments), expected)


@given(inputs(), st.data())
def test_programs_on_new_memory_of_the_same_layout_need_no_new_compile(
    arguments: list[torch.Tensor], data: st.DataObject
) -> None:
    program = data.draw(programs(["add", "mul", "t", "tail", "cat"]))
    jitted = dsjit.jit(program, fullgraph=True)
    jitted(*arguments)
    others = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).copy_(t.flip(-1)) if is_dense(t) else t
              for t in arguments]  # fmt: skip
    compare(call_compiled(jitted, *others), program(*others))


def is_dense(tensor: torch.Tensor) -> bool:
    return 0 not in tensor.stride()
