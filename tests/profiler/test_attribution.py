"""The time of a kernel is divided over its ops: in proportion to the model, and all of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.fusion.costs import Costs
from dsjit.profiler.attribution import op_shares
from dsjit.profiler.profile import OpShare


def shares_of(function: object, *inputs: Tensor) -> list[OpShare]:
    jitted = dsjit.jit(function)
    jitted(*inputs)
    (compilation,) = jitted_of(jitted).compilations
    (step,) = compilation.steps
    return list(op_shares(step, compilation.plan, Costs()))


def test_shares_add_up_to_one() -> None:
    found = shares_of(lambda x, y: torch.softmax(x.exp() * y + 1, -1), torch.randn(8, 16), torch.randn(8, 16))
    assert sum(each.share for each in found) == pytest.approx(1)
    assert all(each.share > 0 for each in found)


def test_an_op_that_costs_more_has_the_larger_share() -> None:
    by_op = {each.op: each.share for each in shares_of(lambda x: (-x).exp() * 2, torch.randn(64, 64))}
    assert by_op["aten.exp.default"] > by_op["aten.mul.Tensor"] / 2

    by_op = {each.op: each.share for each in shares_of(lambda x, y: -(x + y), torch.randn(64), torch.randn(64))}
    assert by_op["aten.add.Tensor"] > by_op["aten.neg.default"]


def test_a_library_call_has_all_of_its_time() -> None:
    (only,) = shares_of(lambda x: torch.cumsum(x, 0), torch.randn(8))
    assert (only.share, only.file) == (1.0, __file__)
