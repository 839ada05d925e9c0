"""Common subexpression elimination."""

from __future__ import annotations

import math

import pytest
import torch

from dsjit.passes.cse import eliminate_common_subexpressions
from tests.graphs import GraphRecorder


def merged(first, second) -> bool:
    """Whether `x + first` and `x + second` become one node."""
    r = GraphRecorder()
    x = r.input([4], torch.float64)
    a, b = r.aten.add.Tensor(x, first), r.aten.add.Tensor(x, second)
    graph = r.graph(r.aten.stack.default([a, b]))
    return len(eliminate_common_subexpressions(graph).nodes) == 2


@pytest.mark.parametrize(
    ("first", "second"), [(0.0, -0.0), (1, 1.0), (1, True), (True, 1.0), (1.0, 2.0)], ids=lambda value: repr(value)
)
def test_numbers_that_differ_in_type_or_bits_stay_apart(first, second):
    assert not merged(first, second)


@pytest.mark.parametrize("number", [math.nan, math.inf, -0.0, 3, True])
def test_equal_numbers_are_merged(number):
    assert merged(number, number)


def test_random_numbers_are_drawn_each_time():
    r = GraphRecorder()
    x = r.input([4])
    graph = r.graph(r.aten.add.Tensor(r.aten.rand_like.default(x), r.aten.rand_like.default(x)))
    assert eliminate_common_subexpressions(graph) is graph


def test_two_outputs_that_eager_returns_as_two_tensors_stay_two():
    r = GraphRecorder()
    x = r.input([4])
    graph = r.graph(r.aten.exp.default(x), r.aten.exp.default(x))
    assert eliminate_common_subexpressions(graph) is graph


def test_views_of_equal_values_stay_apart_when_both_are_returned():
    r = GraphRecorder()
    x = r.input([4])
    a = r.aten.view.default(r.aten.exp.default(x), [2, 2])
    b = r.aten.view.default(r.aten.exp.default(x), [2, 2])
    graph = r.graph(a, b)
    assert eliminate_common_subexpressions(graph) is graph


def test_an_output_and_an_inner_value_are_merged():
    r = GraphRecorder()
    x = r.input([4])
    a, b = r.aten.exp.default(x), r.aten.exp.default(x)
    graph = eliminate_common_subexpressions(r.graph(a, r.aten.neg.default(b)))
    assert [str(node.op) for node in graph.nodes] == ["aten.exp.default", "aten.neg.default"]


def test_merging_spreads_to_the_users():
    r = GraphRecorder()
    x = r.input([4])
    a = r.aten.neg.default(r.aten.exp.default(x))
    b = r.aten.neg.default(r.aten.exp.default(x))
    assert len(eliminate_common_subexpressions(r.graph(r.aten.add.Tensor(a, b))).nodes) == 3


def test_ops_with_several_outputs_are_merged_whole():
    r = GraphRecorder()
    x = r.input([4])
    (a, _), (_, d) = r.aten.sort.default(x), r.aten.sort.default(x)
    graph = eliminate_common_subexpressions(r.graph(r.aten.mul.Tensor(a, d)))
    assert [str(node.op) for node in graph.nodes] == ["aten.sort.default", "aten.mul.Tensor"]
