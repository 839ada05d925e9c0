"""Decomposition: the Graph around a rewritten node stays as it was."""

from __future__ import annotations

import pytest
import torch

from dsjit.ir.graph import Node, Source
from dsjit.ir.verify_graph import verify_graph
from dsjit.ops.row import Decomposition
from dsjit.ops.table import OP_TABLE, rule_of
from dsjit.passes.decompose import decompose
from dsjit.passes.reference import run_reference
from tests.graphs import GraphRecorder, tensor_type

aten = torch.ops.aten


def assert_equal_results(graph, result, *inputs):
    verify_graph(result, run_ops=True)
    wanted, got = run_reference(graph, inputs), run_reference(result, inputs)
    torch.testing.assert_close(got, wanted, equal_nan=True)
    assert [value.type for value in result.outputs] == [value.type for value in graph.outputs]


def layer_norm(x, weight):
    return aten.native_layer_norm.default, (x, (8,), weight, weight, 1e-5)


def softmax(x, weight):
    return aten._softmax.default, (x, -1, False)


def mean(x, weight):
    return aten.mean.dim, (x, (0,))


def variance(x, weight):
    return aten.var.correction, (x, (1,))


@pytest.mark.parametrize("call", [layer_norm, softmax, mean, variance])
def test_rewrites_until_only_kernels_are_left(call):
    r = GraphRecorder()
    op, args = call(r.input([4, 8]), r.input([8]))
    outputs = r.call(op, *args)
    graph = r.graph(outputs[0] if isinstance(outputs, tuple) else outputs)
    result = decompose(graph)
    assert all(rule_of(node) is not None for node in result.nodes)
    assert not any(isinstance(rule_of(node), Decomposition) for node in result.nodes)
    assert_equal_results(graph, result, torch.randn(4, 8), torch.randn(8))


def test_every_node_keeps_the_line_that_it_comes_from():
    r = GraphRecorder()
    r.source = Source("model.py", 3, "forward")
    y = r.aten._softmax.default(r.input([4, 8]), -1, False)
    r.source = Source("model.py", 4, "forward")
    result = decompose(r.graph(r.aten.neg.default(y)))
    assert {node.source.line for node in result.nodes[:-1]} == {3}
    assert result.nodes[-1].source.line == 4


def test_results_keep_their_values_and_strides():
    r = GraphRecorder()
    x = r.input([4, 8], strides=(1, 4))
    y = r.value(tensor_type([4, 8], strides=(1, 4)))
    r.nodes.append(Node(aten._softmax.default, (x, -1, False), {}, (y,)))
    flat = r.aten.view.default(r.aten.t.default(y), [32])
    graph = r.graph(flat)
    result = decompose(graph)
    assert y in result.producers()
    assert_equal_results(graph, result, torch.randn(8, 4).t())


def test_a_result_that_nobody_reads_need_not_be_computed():
    r = GraphRecorder()
    x, w = r.input([4, 8]), r.input([8])
    y, _, _ = r.aten.native_layer_norm.default(x, [8], w, w, 1e-5)
    graph = r.graph(y)
    assert_equal_results(graph, decompose(graph), torch.randn(4, 8), torch.randn(8))


def test_what_the_table_declines_stays_a_library_call():
    r = GraphRecorder()
    x = r.input([4, 8], torch.complex64)
    graph = r.graph(r.aten.mean.dim(x, [0]))
    result = decompose(graph)
    assert [node.op for node in result.nodes] == [aten.mean.dim]


def test_a_graph_without_decompositions_is_returned_as_it_is():
    r = GraphRecorder()
    graph = r.graph(r.aten.neg.default(r.input([4])))
    assert decompose(graph) is graph


def test_the_table_has_decompositions_to_test():
    assert sum(isinstance(row.rule, Decomposition) for row in OP_TABLE.values()) > 10
