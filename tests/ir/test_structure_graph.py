"""Which Graphs count as the same program."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dsjit.ir.graph import Source, Write
from dsjit.ir.structure_graph import graph_structure
from tests.graphs import GraphRecorder

aten = torch.ops.aten


def scaled_sum(
    first_id=0, op=aten.mul.Tensor, factor=2.0, shape=(4, 3), dtype=torch.float32, strides=None, source=None,
    content=1.0, right="c", keywords=None, name="f",
):  # fmt: skip
    """`(x op factor) + c` of one input, with a constant c; its output is the sum."""
    r = GraphRecorder()
    r.count = first_id
    if source is not None:
        r.source = source
    x = r.input(shape, dtype, strides)
    c = r.constant(torch.full((3,), content))
    scaled = r.call(op, x, factor)
    total = r.call(aten.add.Tensor, scaled, {"c": c, "x": x}[right], **(keywords or {}))
    return r.graph(total, name=name)


def with_outputs(graph, *ids):
    """`graph` with the outputs of these nodes as its outputs."""
    return replace(graph, outputs=tuple(graph.nodes[number].output for number in ids))


def with_node(graph, **fields):
    return replace(graph, nodes=(replace(graph.nodes[0], **fields), *graph.nodes[1:]))


@pytest.mark.parametrize(
    "other",
    [scaled_sum(), scaled_sum(first_id=40), scaled_sum(name="another")],
    ids=["made again", "other ids", "another name"],
)
def test_graphs_that_compute_the_same_in_the_same_way_are_equal(other):
    assert graph_structure(scaled_sum()) == graph_structure(other)
    assert hash(graph_structure(scaled_sum())) == hash(graph_structure(other))


@pytest.mark.parametrize(
    "options",
    [
        {"op": aten.div.Tensor},
        {"factor": 3.0},
        {"factor": 2},
        {"shape": (5, 3)},
        {"dtype": torch.float64},
        {"strides": (1, 4)},
        {"source": Source("model.py", 13, "forward", "")},
        {"content": 2.0},
        {"right": "x"},
        {"keywords": {"alpha": 2}},
    ],
    ids=str,
)
def test_graphs_that_differ_in_anything_else_are_not(options):
    assert graph_structure(scaled_sum()) != graph_structure(scaled_sum(**options))


@pytest.mark.parametrize(
    ("one", "another"), [(1, 1.0), (1, True), (0.0, -0.0), (1.5, 1.5 + 2**-52), (0, None)], ids=str
)
def test_numbers_that_python_calls_equal_are_told_apart(one, another):
    graphs = [with_node(scaled_sum(), args=(*scaled_sum().nodes[0].args, (number,))) for number in (one, another)]
    assert graph_structure(graphs[0]) != graph_structure(graphs[1])


def test_a_nan_is_equal_to_itself():
    nans = [scaled_sum(factor=float("nan")), scaled_sum(factor=math.nan * 2)]
    assert graph_structure(nans[0]) == graph_structure(nans[1])


def test_which_values_come_out_counts_and_in_which_order():
    graph = scaled_sum()
    keys = [graph_structure(with_outputs(graph, *ids)) for ids in ((0,), (1,), (0, 1), (1, 0), (1, 1))]
    assert len(set(keys)) == len(keys)


def test_what_is_written_where_counts():
    graph = scaled_sum()
    (x,) = graph.inputs
    written = [
        replace(graph, writes=tuple(Write(x, graph.nodes[number].output, graph.nodes[0].source) for number in ids))
        for ids in ((), (0,), (1,))
    ]
    assert len({graph_structure(each) for each in written}) == 3


@pytest.mark.parametrize("fields", [{"effect": True}, {"mutates": (0,)}], ids=str)
def test_what_a_node_does_beyond_its_results_counts(fields):
    assert graph_structure(scaled_sum()) != graph_structure(with_node(scaled_sum(), **fields))


def test_constants_are_compared_by_their_bits():
    def graph(constant):
        r = GraphRecorder()
        return r.graph(r.call(aten.add.Tensor, r.input([2, 2]), r.constant(constant)))

    content = torch.arange(4.0).view(2, 2)
    assert graph_structure(graph(content)) == graph_structure(graph(content.clone()))
    assert graph_structure(graph(content)) != graph_structure(graph(content.t()))
    assert graph_structure(graph(torch.tensor(0.0))) != graph_structure(graph(torch.tensor(-0.0)))


class TestWithNames:
    """The key of what two runs have in common, though they may want different results of it."""

    def test_inputs_of_other_names_are_other_inputs(self):
        graphs = [scaled_sum(first_id=first) for first in (0, 40, 40)]
        names = [{value.id: position for position, value in enumerate(graph.inputs)} for graph in graphs[:2]]
        names.append({value.id: position + 7 for position, value in enumerate(graphs[2].inputs)})
        keys = [graph_structure(graph, names=given) for graph, given in zip(graphs, names, strict=True)]
        assert keys[0] == keys[1] != keys[2]

    def test_outputs_and_writes_do_not_count(self):
        graph = scaled_sum()
        names = {value.id: value.id for value in graph.inputs}
        written = replace(graph, writes=(Write(graph.inputs[0], graph.nodes[1].output, graph.nodes[0].source),))
        keys = {graph_structure(g, names=names) for g in (graph, with_outputs(graph, 0, 1), written)}
        assert len(keys) == 1

    def test_the_nodes_count(self):
        graphs = [scaled_sum(factor=factor) for factor in (2.0, 2, 3.0)]
        assert len({graph_structure(g, names={value.id: 0 for value in g.inputs}) for g in graphs}) == 3
