"""A forward falls into parts of about equal bytes, which end where little is alive."""

from __future__ import annotations

import pytest

from dsjit.ir.joint_graph import JointGraph
from dsjit.passes.segments import forward_nodes, segments
from tests.graphs import GraphRecorder

LAYERS = 8


def layered():
    """Layers that are wide inside and narrow in between, with the ids of the narrow values."""
    r = GraphRecorder()
    x = r.input([16, 4])
    narrow = []
    for _ in range(LAYERS):
        wide = r.aten.exp.default(r.aten.expand.default(r.aten.unsqueeze.default(x, 2), [16, 4, 32]))
        x = r.aten.sum.dim_IntList(r.aten.sin.default(wide), [2])
        narrow.append(x)
    return r, x, narrow


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_parts_end_between_layers(count):
    r, x, narrow = layered()
    graph = r.graph(x)
    parts = segments(graph, graph.nodes, count)
    assert [node for part in parts for node in part] == list(graph.nodes)
    assert [part[-1].outputs[0] for part in parts] == narrow[LAYERS // count - 1 :: LAYERS // count]


def test_there_are_fewer_parts_than_asked_for_when_there_are_fewer_nodes():
    r = GraphRecorder()
    graph = r.graph(r.aten.exp.default(r.aten.sin.default(r.input([4]))))
    assert 1 <= len(segments(graph, graph.nodes, 16)) <= 2


def test_nodes_that_depend_on_gradients_are_no_part_of_the_forward():
    r = GraphRecorder()
    x, tangent = r.input([4]), r.input([4])
    result, slope = r.aten.sin.default(x), r.aten.cos.default(x)
    graph = r.graph(result, r.aten.mul.Tensor(tangent, slope))
    joint = JointGraph(graph, 1, 1, (0,), (0,), ((4,),), frozenset({0}), frozenset())
    assert [str(node.op) for node in forward_nodes(joint)] == ["aten.sin.default", "aten.cos.default"]
