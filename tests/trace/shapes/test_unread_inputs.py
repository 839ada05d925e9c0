"""Inputs that nobody reads are added to a run, and left out of comparisons."""

from __future__ import annotations

import torch

from dsjit.ir.graph import Graph, Node, TensorType, Value, Write
from dsjit.ir.joint_graph import JointGraph
from dsjit.trace.capture import Conclusion
from dsjit.trace.looks.segments import Segment
from dsjit.trace.shapes.unread_inputs import with_inputs, without_unread_inputs

aten = torch.ops.aten


def vector(number: int, size: int = 4) -> Value:
    return Value(number, TensorType((size,), torch.float32, (1,), torch.device("cpu")))


def test_what_is_read_written_or_returned_stays():
    read, written, returned, unread, result = map(vector, range(5))
    graph = Graph(
        (unread, read, written, returned),
        (Node(aten.sin.default, (read,), {}, (result,)),),
        (result, returned),
        (Write(written, result),),
    )
    assert without_unread_inputs(graph).inputs == (read, written, returned)


def test_a_run_takes_more_inputs_behind_its_own():
    x, result = vector(0), vector(1)
    graph = Graph((x,), (Node(aten.sin.default, (x,), {}, (result,)),), (result,))
    run = Conclusion((Segment(graph, None),), (), frozenset())
    (taken,) = with_inputs([run], [[vector(0, 9).type]])
    (segment,) = taken.segments
    assert [(value.id, value.type.shape) for value in segment.graph.inputs] == [(0, (4,)), (2, (9,))]
    assert without_unread_inputs(segment.graph).inputs == graph.inputs


def test_in_a_joint_graph_they_are_primals_without_gradients():
    x, tangent, result, gradient = map(vector, range(4))
    nodes = (
        Node(aten.sin.default, (x,), {}, (result,)),
        Node(aten.mul.Tensor, (tangent, x), {}, (gradient,)),
    )
    graph = Graph((x, tangent), nodes, (result, gradient))
    joint = JointGraph(graph, 1, 1, (0,), (0,), ((4,),), frozenset({0}), frozenset())
    wider = joint.with_primals((vector(4, 9),))
    assert [value.id for value in wider.graph.inputs] == [0, 4, 1]
    assert (wider.primals, wider.gradients, wider.shapes) == (2, (0, None), ((4,), None))
    assert (wider.graph.nodes, wider.graph.outputs) == (graph.nodes, graph.outputs)
