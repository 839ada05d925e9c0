"""Plans of one program at several sizes have one form."""

from __future__ import annotations

import pytest
import torch

from dsjit.codegen.target import CPU_TARGET
from dsjit.fusion.decisions import Decisions
from dsjit.fusion.group import Group
from dsjit.fusion.planner import FusionPlan, plan_fusion
from dsjit.ir.template import Mismatch
from tests.graphs import trace

aten = torch.ops.aten


def plan(rows: int, like: FusionPlan | None = None) -> FusionPlan:
    """Of a root of few numbers that is broadcast over `rows`: made once and loaded, where these are many."""
    graph = trace(lambda x, scale: x * scale.sqrt(), torch.randn(rows, 64), torch.rand(64))
    return plan_fusion(graph, CPU_TARGET.limits, CPU_TARGET.device, like=like)


def members(found: FusionPlan) -> list[list[str]]:
    return [[str(node.op) for node in unit.members] for unit in found.units if isinstance(unit, Group)]


def test_sizes_decide_what_is_computed_again() -> None:
    assert len(members(plan(20))) == 1
    assert len(members(plan(2000))) == 2


@pytest.mark.parametrize(("first", "second"), [(20, 2000), (2000, 20)])
def test_a_plan_like_another_has_its_form(first: int, second: int) -> None:
    like = plan(first)
    assert members(plan(second, like)) == members(like)


def test_another_program_is_no_match() -> None:
    graph = trace(lambda x, scale: (x * scale).exp() - scale.sqrt().sum(), torch.randn(20, 64), torch.rand(64))
    with pytest.raises(Mismatch, match="fused in another way"):
        plan_fusion(graph, CPU_TARGET.limits, CPU_TARGET.device, like=plan(20))


def test_decisions_are_taken_again_in_their_order() -> None:
    first = Decisions()
    assert [first.take("a", lambda: 1), first.take("b", lambda: 2)] == [1, 2]
    again = Decisions(first.taken)
    assert [again.take("a", lambda: 8), again.take("b", lambda: 9)] == [1, 2]
    with pytest.raises(Mismatch):
        again.take("c", lambda: 3)
