"""Ops spelled out in steps, whose roundings are moved one by one."""

from __future__ import annotations

import pytest
import torch

from dsjit.oracle.roundings import STEPS, Roundings, rounded_at_random

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
    with Roundings(torch.float32, torch.Generator()):
        moved = op(x, *arguments, **keywords)
    assert moved.shape == op(x, *arguments, **keywords).shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_rounding_is_relative_but_where_denormals_are_near(dtype) -> None:
    limits = torch.finfo(dtype)
    denormal = limits.smallest_normal * limits.eps
    exact = torch.tensor([3.0, -limits.max, limits.smallest_normal, denormal * 8, denormal / 4], dtype=torch.float64)
    samples = [rounded_at_random(exact, dtype, torch.Generator().manual_seed(seed)) for seed in range(500)]
    farthest = (torch.stack(samples) - exact).abs().amax(0)
    wanted = [3 * limits.eps, limits.max * limits.eps, denormal, denormal, denormal / 4]
    assert torch.allclose(farthest, torch.tensor(wanted, dtype=torch.float64), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("others", [[], [1e-40]])
def test_what_no_rounding_changes_stays(others: list[float]) -> None:
    exact = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), *others], dtype=torch.float64)
    moved = rounded_at_random(exact, torch.float32, torch.Generator())
    assert torch.equal(moved.view(torch.int64)[:4], exact.view(torch.int64)[:4])
    assert moved[4].isnan()


def test_elements_that_share_memory_move_together() -> None:
    exact = torch.ones(3, dtype=torch.float64).expand(4, 3)
    moved = rounded_at_random(exact, torch.float32, torch.Generator(), (1, 3))
    assert torch.equal(moved, moved[:1].expand(4, 3))
    assert len(moved.unique()) == 3
