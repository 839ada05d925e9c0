"""Optimisation fuel: so many rewrites and no more, and the search for the first bad one."""

from __future__ import annotations

import pytest
import torch

from dsjit.api.compile import StageTimer, compile_graph
from dsjit.codegen.llvm.engine import KernelCache
from dsjit.config import Environment
from dsjit.ir.graph import Graph
from dsjit.passes.fuel import Fuel, Rewrite
from dsjit.verification.rewrites import first_bad_rewrite, search
from tests.graphs import trace


def model(x):
    a = x.clone() * 2 + 1
    b = torch.softmax(a, -1)
    return b.sum(0), (a @ b.T).relu()


def compiled(graph: Graph, fuel: Fuel):
    return compile_graph(graph, "eager", Environment(), KernelCache(), StageTimer(), None, fuel)


def test_without_fuel_every_op_is_a_library_call() -> None:
    graph = trace(model, torch.randn(6, 9))
    found = compiled(graph, Fuel(0))
    assert not found.kernels and found.optimized is graph


def test_any_amount_of_fuel_gives_the_same_answer_and_is_burnt_in_the_same_order() -> None:
    x = torch.randn(6, 9)
    graph = trace(model, x)
    whole = Fuel()
    compiled(graph, whole)
    assert {rewrite.kind for rewrite in whole.done} == {"pass", "kernel", "fusion"}
    for limit in range(len(whole.done) + 1):
        fuel = Fuel(limit)
        found = compiled(graph, fuel).program([x])
        assert len(fuel.done) == limit
        torch.testing.assert_close(tuple(found), model(x))


def test_rewrites_say_what_they_are() -> None:
    fuel = Fuel()
    compiled(trace(model, torch.randn(6, 9)), fuel)
    lines = [str(rewrite) for rewrite in fuel.done]
    assert "pass simplify" in lines
    assert any(line.startswith("fusion aten.mul.Tensor at model.py:12 into the kernel of") for line in lines)


@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_the_search_finds_the_first_bad_number(total: int) -> None:
    for bad in range(1, total + 1):
        asked: list[int] = []

        def is_wrong(limit: int, bad: int = bad, asked: list[int] = asked) -> bool:
            asked.append(limit)
            return limit >= bad

        assert search(total, is_wrong) == bad
        assert len(asked) <= total.bit_length()


def test_the_first_bad_rewrite_is_named_or_there_is_none() -> None:
    def is_wrong(fuel: Fuel) -> bool:
        return [fuel.burn(Rewrite("pass", name)) for name in ("dce", "cse", "fold")][1]

    found = first_bad_rewrite(is_wrong)
    assert found is not None and str(found) == "2 of 3: pass cse"
    assert first_bad_rewrite(lambda fuel: False) is None
    assert first_bad_rewrite(lambda fuel: True) is None


def test_a_fork_burns_its_own_fuel_until_it_is_adopted() -> None:
    fuel = Fuel(2)
    attempt = fuel.fork()
    assert attempt.burn(Rewrite("pass", "dce")) and fuel.done == []
    fuel.adopt(attempt)
    assert fuel.burn(Rewrite("pass", "cse")) and not fuel.burn(Rewrite("pass", "fold"))
