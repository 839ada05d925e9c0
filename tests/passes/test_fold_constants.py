"""Constant folding."""

from __future__ import annotations

import math

import pytest
import torch

from dsjit.passes.dce import eliminate_dead_code
from dsjit.passes.fold_constants import fold_constants
from dsjit.passes.reference import run_reference, same_bits
from tests.graphs import GraphRecorder


def names(graph):
    return [str(node.op) for node in graph.nodes]


def test_a_causal_mask_becomes_one_constant():
    r = GraphRecorder()
    x = r.input([4, 4])
    rows = r.aten.unsqueeze.default(r.aten.arange.default(4), 1)
    mask = r.aten.gt.Tensor(r.aten.arange.default(4), rows)
    graph = r.graph(r.aten.masked_fill.Scalar(x, mask, -math.inf))
    folded = eliminate_dead_code(fold_constants(graph))
    assert names(folded) == ["aten.masked_fill.Scalar"]
    (tensor,) = folded.constants.values()
    assert same_bits(tensor, torch.ones(4, 4, dtype=torch.bool).triu(1))
    inputs = [torch.randn(4, 4)]
    assert same_bits(run_reference(folded, inputs)[0], run_reference(graph, inputs)[0])


@pytest.mark.parametrize("number", [0.0, -0.0, 2.5, math.inf, -1e-40])
def test_a_result_of_one_number_becomes_a_full_node(number):
    r = GraphRecorder()
    x = r.input([3])
    ones = r.aten.ones.default([3])
    graph = r.graph(r.aten.add.Tensor(x, r.aten.mul.Tensor(ones, number)))
    folded = eliminate_dead_code(fold_constants(graph))
    assert names(folded) == ["aten.full.default", "aten.add.Tensor"]
    assert math.copysign(1.0, folded.nodes[0].args[1]) == math.copysign(1.0, number)
    inputs = [torch.tensor([0.0, -0.0, 1.0])]
    assert same_bits(run_reference(folded, inputs)[0], run_reference(graph, inputs)[0])


def test_a_constant_of_one_element_becomes_a_number_in_kernels_only():
    r = GraphRecorder()
    x = r.input([3, 3])
    eight, index = r.constant(torch.tensor(8.0)), r.constant(torch.tensor([1]))
    graph = r.graph(r.aten.index_select.default(r.aten.div.Tensor(x, eight), 0, index))
    folded = fold_constants(graph)
    assert names(folded) == ["aten.full.default", "aten.div.Tensor", "aten.index_select.default"]
    assert list(folded.constants) == [index]
    inputs = [torch.randn(3, 3)]
    assert same_bits(run_reference(folded, inputs)[0], run_reference(graph, inputs)[0])


def test_zeros_of_both_signs_are_two_numbers():
    r = GraphRecorder()
    zeros = r.constant(torch.tensor([0.0, -0.0]))
    graph = fold_constants(r.graph(r.aten.add.Tensor(r.input([2]), r.aten.neg.default(zeros))))
    assert names(graph) == ["aten.add.Tensor"]
    assert any(same_bits(tensor, torch.tensor([-0.0, 0.0])) for tensor in graph.constants.values())


def test_a_nan_is_kept():
    r = GraphRecorder()
    nan = r.aten.log.default(r.aten.full.default([], -1.0))
    graph = eliminate_dead_code(fold_constants(r.graph(r.aten.add.Tensor(r.input([2]), nan))))
    assert names(graph) == ["aten.full.default", "aten.add.Tensor"]
    assert math.isnan(graph.nodes[0].args[1])


def test_a_factory_that_reads_only_a_shape_needs_no_input():
    r = GraphRecorder()
    x = r.input([2, 3], torch.int64)
    graph = fold_constants(r.graph(r.aten.add.Tensor(x, r.aten.ones_like.default(x))))
    assert graph.nodes[0].op is torch.ops.aten.full.default
    assert graph.nodes[0].args == ((2, 3), 1)
    assert graph.nodes[0].kwargs["dtype"] is torch.int64


def test_what_only_library_calls_read_becomes_a_tensor():
    r = GraphRecorder()
    x = r.input([3, 3])
    zeros = r.aten.zeros.default([3, 3])
    graph = fold_constants(r.graph(r.aten.mm.default(x, zeros)))
    assert names(graph) == ["aten.mm.default"]
    assert same_bits(graph.constants[zeros], torch.zeros(3, 3))


def test_random_and_undefined_content_is_not_folded():
    r = GraphRecorder()
    x = r.input([3])
    total = r.aten.add.Tensor(r.aten.add.Tensor(x, r.aten.rand.default([3])), r.aten.empty.memory_format([3]))
    graph = r.graph(total)
    assert fold_constants(graph) is graph


def test_large_results_stay_nodes():
    r = GraphRecorder()
    graph = r.graph(r.aten.add.Tensor(r.input([1000]), r.aten.arange.default(1000)))
    assert fold_constants(graph, limit=1000) is graph
    assert names(fold_constants(graph, limit=8000)) == ["aten.add.Tensor"]


def test_what_is_returned_is_made_anew_on_each_run():
    r = GraphRecorder()
    graph = r.graph(r.aten.arange.default(4), r.aten.view.default(r.aten.arange.default(4), [2, 2]))
    assert fold_constants(graph) is graph


def test_layout_of_the_value_is_kept():
    r = GraphRecorder()
    transposed = r.aten.t.default(r.constant(torch.arange(6.0).view(2, 3)))
    doubled = r.aten.mul.Tensor(transposed, 2)
    graph = fold_constants(r.graph(r.aten.mm.default(r.input([2, 3]), doubled)))
    assert graph.constants[doubled].stride() == doubled.type.strides == (1, 3)


def test_an_op_that_raises_is_left_to_the_run():
    r = GraphRecorder()
    index = r.constant(torch.tensor([5]))
    bad = r.aten.index_select.default(r.constant(torch.arange(3.0)), 0, index)
    graph = r.graph(r.aten.add.Tensor(r.input([1]), bad))
    assert "aten.index_select.default" in names(fold_constants(graph))
