"""Ops spelled out in steps, whose roundings are moved one by one."""

from __future__ import annotations

import pytest
import torch

from dsjit.oracle.roundings import STEPS, Roundings

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("op", "shape", "arguments", "keywords"),
    [
        (aten.gelu.default, (5,), (), {}),
        (aten.gelu.default, (5,), (), {"approximate": "tanh"}),
        (aten.var.correction, (3, 4), ([1],), {"correction": 0, "keepdim": True}),
        (aten.var.correction, (3, 4), (None,), {}),
        (aten.var.correction, (), ([0],), {"correction": 0}),
        (aten.std.correction, (), ([-1],), {"correction": 0}),
        (aten.std.correction, (3, 4), ([0, 1],), {"correction": 2}),
    ],
)
def test_the_steps_of_an_op_compute_what_it_computes(op, shape, arguments, keywords) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    assert torch.allclose(STEPS[op](x, *arguments, **keywords), op(x, *arguments, **keywords))
    with Roundings(2.0**-24, torch.Generator()):
        moved = op(x, *arguments, **keywords)
    assert moved.shape == op(x, *arguments, **keywords).shape
