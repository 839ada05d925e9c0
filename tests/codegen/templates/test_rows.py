"""Which sums of rows have a template, and what a Program makes of them."""

from __future__ import annotations

import copy
import re
from dataclasses import asdict

import pytest
import torch

import dsjit
from dsjit.codegen.templates.rows import COLUMNS, AddRowsSizes, AddRowsTemplate, AddRowsWork, plan_add_rows
from dsjit.fusion.views import Views
from tests.api.checks import assert_same
from tests.graphs import GraphRecorder

aten = torch.ops.aten


def planned(shape=(6, 4), dtype=torch.float32, dim=0, number=torch.int64, rows=3, alpha=1, strides=None):
    recorder = GraphRecorder()
    first = recorder.input(tuple(shape), dtype)
    taken = tuple(rows if place == dim else size for place, size in enumerate(shape))
    source = recorder.input(taken, dtype, strides)
    index = recorder.input((rows,), number)
    result = recorder.call(aten.index_add.default, first, dim, index, source, alpha=alpha)
    graph = recorder.graph(result)
    return plan_add_rows(graph.nodes[0], Views(graph.producers(), {}))


def test_whole_rows_have_a_template():
    plan = planned((6, 4, 5))
    assert plan.template == AddRowsTemplate(torch.float32, torch.int64)
    assert plan.sizes == AddRowsSizes(rows=3, columns=20, extent=6, index_stride=1)


@pytest.mark.parametrize("case", [
    {"dim": 1}, {"alpha": 2}, {"dtype": torch.bfloat16}, {"dtype": torch.bool}, {"shape": (0, 4), "rows": 0},
    {"strides": (1, 3)},
], ids=str)  # fmt: skip
def test_others_stay_with_the_library(case):
    assert planned(**case) is None


def test_a_work_item_is_a_block_of_columns():
    work = AddRowsWork(4)
    assert work.item_count(asdict(AddRowsSizes(9, 3 * COLUMNS + 1, 6, 1))) == 4
    assert work.item_count(asdict(AddRowsSizes(0, COLUMNS, 6, 1))) == 1  # to copy what nothing is added to


def summed(x, index, rows):
    doubled = x * 2
    return doubled.index_add(0, index, rows + 1) - 1, doubled


def summed_over(x, index, rows):
    return (x * 2).index_add_(0, index, rows + 1)


def summed_into_the_callers(x, index, rows):
    x.index_add_(0, index, rows * 3)
    return x.sum()


def of_a_part(x, index, rows):
    return (x * 2)[1:].index_add(0, index - 1, rows)


@pytest.mark.parametrize("function", [summed, summed_over, summed_into_the_callers, of_a_part])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_programs_add_as_eager_does(function, dtype):
    compiled = dsjit.jit(function)
    for seed, count in enumerate([5, 5, 9, 7, 1]):
        torch.manual_seed(seed)
        arguments = torch.randn(6, 4).mul(9).to(dtype), torch.randint(1, 6, (count,)), torch.randn(count, 4).to(dtype)
        assert_same(compiled(*copy.deepcopy(arguments)), function(*copy.deepcopy(arguments)))


@pytest.mark.parametrize("wrong", [-1, 6])
@pytest.mark.parametrize("function", [summed, summed_into_the_callers])
def test_a_row_out_of_range_raises_as_eager_does_and_leaves_what_eager_leaves(function, wrong):
    compiled = dsjit.jit(function)
    x, rows = torch.randn(6, 4), torch.randn(3, 4)
    good, bad = torch.tensor([0, 5, 2]), torch.tensor([0, wrong, 2])
    for _ in range(2):
        compiled(x.clone(), good, rows)
    given, eager = x.clone(), x.clone()
    with pytest.raises((IndexError, RuntimeError)) as expected:
        function(eager, bad, rows)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        compiled(given, bad, rows)
    assert torch.equal(given, eager)
    assert_same(compiled(x.clone(), good, rows), function(x.clone(), good, rows))


def test_a_sum_runs_without_python():
    compiled = dsjit.jit(summed_over)
    arguments = torch.randn(6, 4), torch.tensor([0, 5, 2]), torch.randn(3, 4)
    for _ in range(2):
        compiled(*arguments)
    (call,) = dsjit.explain(compiled)(*arguments).library_calls
    assert call.op == "aten.index_add.default" and call.native
