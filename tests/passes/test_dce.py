"""Dead code elimination."""

from __future__ import annotations

import torch

from dsjit.ir.graph import Write
from dsjit.passes.dce import eliminate_dead_code
from tests.graphs import GraphRecorder


def names(graph):
    return [str(node.op) for node in graph.nodes]


def test_keeps_what_a_write_reads():
    r = GraphRecorder()
    x = r.input([4])
    written = r.aten.exp.default(x)
    r.aten.cos.default(x)
    graph = r.graph(writes=(Write(x, written),))
    assert names(eliminate_dead_code(graph)) == ["aten.exp.default"]


def test_keeps_nodes_with_an_effect_and_what_they_read():
    r = GraphRecorder()
    x = r.input([4])
    r.aten.bernoulli.default(r.aten.sigmoid.default(x))
    assert names(eliminate_dead_code(r.graph(x))) == ["aten.sigmoid.default", "aten.bernoulli.default"]


def test_keeps_a_node_when_one_of_its_outputs_is_used():
    r = GraphRecorder()
    values, _ = r.aten.sort.default(r.input([4]))
    assert names(eliminate_dead_code(r.graph(values))) == ["aten.sort.default"]


def test_drops_unused_constants():
    r = GraphRecorder()
    used, unused = r.constant(torch.ones(2)), r.constant(torch.zeros(2))
    graph = eliminate_dead_code(r.graph(r.aten.neg.default(used)))
    assert used in graph.constants
    assert unused not in graph.constants


def test_returns_the_same_graph_when_all_is_live():
    r = GraphRecorder()
    graph = r.graph(r.aten.neg.default(r.input([4])))
    assert eliminate_dead_code(graph) is graph
