"""Scalars of the CPU that ops on a GPU read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dsjit.ir.graph import Arg, Graph, Node, Value
from dsjit.ir.verify_graph import verify_graph
from dsjit.passes.dce import eliminate_dead_code
from dsjit.passes.reference import run_reference
from dsjit.passes.scalars_to_device import scalars_to_device
from tests.graphs import graph_from_text

CPU = torch.device("cpu")

GRAPHS = {
    "a learning rate": """
def graph(x0: 'f32[8, 4] @cuda:0', x1: f64[()]):
    t2 = aten.rsub.Scalar(x1, 1.0)
    t3 = aten.mul.Tensor(x0, t2)
    t4 = aten.mul.Tensor(x0, x1)
    return t3, t4
""",
    "step counts, which the CPU counts itself": """
def graph(x0: 'f32[8, 4] @cuda:0', x1: f32[()], x2: 'f32[8, 4] @cuda:0', x3: f32[()]):
    t4 = aten.add.Tensor(x1, 1)
    t5 = aten.pow.Scalar(0.9, t4)
    t6 = aten.div.Tensor(x0, t5)
    t7 = aten.add.Tensor(x3, 1)
    t8 = aten.pow.Scalar(0.9, t7)
    t9 = aten.div.Tensor(x2, t8)
    return t6, t9, t4, t7
""",
    "scalars of two dtypes, one of them made by a reduction": """
def graph(x0: 'f32[8, 4] @cuda:0', x1: f32[5], x2: i64[()]):
    t3 = aten.sum.default(x1)
    t4 = aten.exp.default(t3)
    t5 = aten.mul.Tensor(x0, t4)
    t6 = aten.add.Tensor(t5, x2)
    return t6
""",
}


def devices_read(graph: Graph) -> list[set[str]]:
    """By each node: where what it reads is."""
    return [{value.type.device.type for value in node.inputs()} for node in graph.nodes]


def all_on_the_cpu(graph: Graph) -> Graph:
    """The same computation."""
    known: dict[Value, Value] = {}

    def moved(arg: Arg) -> Arg:
        if isinstance(arg, Value):
            return known.setdefault(arg, Value(arg.id, replace(arg.type, device=CPU)))
        if isinstance(arg, tuple):
            return tuple(map(moved, arg))
        return CPU if isinstance(arg, torch.device) else arg

    nodes = [
        Node(node.op, tuple(map(moved, node.args)), {k: moved(v) for k, v in node.kwargs.items()},
             tuple(map(moved, node.outputs)), node.source)
        for node in graph.nodes
    ]  # fmt: skip
    return replace(
        graph, inputs=tuple(map(moved, graph.inputs)), nodes=tuple(nodes), outputs=tuple(map(moved, graph.outputs))
    )


@pytest.mark.parametrize("text", GRAPHS.values(), ids=GRAPHS)
def test_no_op_on_the_gpu_reads_the_cpu_any_more(text: str) -> None:
    before = graph_from_text(text)
    after = eliminate_dead_code(scalars_to_device(before))
    verify_graph(after, run_ops=True)
    assert {"cuda", "cpu"} in devices_read(before) and {"cuda", "cpu"} not in devices_read(after)
    copies = [node for node in after.nodes if node.op is torch.ops.aten._to_copy.default]
    assert len(copies) == len({(node.output.type.dtype, node.output.type.shape) for node in copies})
    tensors = [
        torch.randint(1, 5, value.type.shape).to(value.type.dtype)
        if value.type.dtype is torch.int64
        else torch.rand(value.type.shape, dtype=value.type.dtype) + 1
        for value in before.inputs
    ]
    expected, found = (run_reference(all_on_the_cpu(graph), tensors) for graph in (before, after))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "text",
    [
        "def graph(x0: f32[8], x1: f32[()]):\n    t2 = aten.mul.Tensor(x0, x1)\n    return t2",
        "def graph(x0: 'f32[8] @cuda:0', x1: f32[3]):\n    t2 = aten.neg.default(x0)\n    return t2, x1",
    ],
)
def test_nothing_changes_where_no_device_reads_from_another(text: str) -> None:
    graph = graph_from_text(text)
    assert scalars_to_device(graph) is graph
