"""A printed Graph is Python: executing it gives what the reference executor gives."""

from __future__ import annotations

import math

import pytest
import torch

from dsjit.ir.graph import Graph, Node, Source, TensorType, Value, Write
from dsjit.ir.print_graph import function_name, print_graph, print_short, print_type
from dsjit.ops.strided import strided_view
from dsjit.passes.reference import run_reference, same_bits
from tests.graphs import GraphRecorder, graph_from_text, tensor_type


def execute(graph: Graph, inputs):
    """Run the printed text of `graph`, with its constants by name."""
    scope: dict = {}
    exec(compile(print_graph(graph), "<printed>", "exec"), scope)
    constants = {f"c{value.id}": tensor for value, tensor in graph.constants.items()}
    returned = scope[function_name(graph)](*inputs, **constants)
    return returned if isinstance(returned, tuple) else (returned,)


def assert_runs_as_reference(graph: Graph, *inputs):
    copies = [tensor.clone() for tensor in inputs]
    wanted = run_reference(graph, inputs)
    got = execute(graph, copies)
    for a, b in [*zip(wanted, got, strict=True), *zip(inputs, copies, strict=True)]:
        assert same_bits(a, b)


def test_layout_of_a_line():
    r = GraphRecorder()
    r.source = Source("/home/user/model.py", 12, "forward", "encoder.0")
    y = r.aten.add.Tensor(r.input([2, 128]), r.input([128]), alpha=2)
    assert print_graph(r.graph(y)).splitlines()[-3:] == [
        "def graph(x0: f32[2, 128], x1: f32[128]):",
        "    t2 = aten.add.Tensor(x0, x1, alpha=2)  # f32[2, 128]  model.py:12 (encoder.0)",
        "    return t2",
    ]


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (tensor_type([2, 3]), "f32[2, 3]"),
        (tensor_type([]), "f32[]"),
        (tensor_type([2, 3], torch.bool), "bool[2, 3]"),
        (tensor_type([2, 3], torch.complex64), "complex64[2, 3]"),
        (tensor_type([2, 3], strides=(1, 2)), "f32[2, 3] strides=(1, 2)"),
        (TensorType((2,), torch.bfloat16, (1,), torch.device("cuda:1")), "bf16[2] @cuda:1"),
    ],
)
def test_types(type_, text):
    assert print_type(type_) == text


def test_runs_with_lists_dtypes_devices_and_strange_numbers():
    r = GraphRecorder()
    x = r.input([3, 4])
    whole = r.aten.cat.default([x, x], 1)
    low = r.aten.clamp.default(whole, -math.inf, 1e30)
    high = r.aten.nan_to_num.default(low, math.nan, 0.5)
    zeros = r.aten.full.default([2, 0], True, dtype=torch.bool, device=torch.device("cpu"))
    cast = r.aten._to_copy.default(high, dtype=torch.float64)
    assert_runs_as_reference(r.graph(cast, zeros), torch.randn(3, 4))


def test_runs_ops_with_several_results():
    r = GraphRecorder()
    x = r.input([4, 6])
    values, indices = r.aten.sort.default(x)
    (only,) = r.aten.split.Tensor(x, 6)
    first, second = r.aten.split.Tensor(values, 2)
    assert_runs_as_reference(r.graph(first, second, indices, only), torch.randn(4, 6))


def test_runs_constants_and_writes():
    r = GraphRecorder()
    x, y = r.input([3]), r.input([3])
    c = r.constant(torch.tensor([1.0, -0.0, math.inf]))
    total = r.aten.add.Tensor(x, c)
    graph = r.graph(total, writes=(Write(x, y), Write(y, total)))
    assert_runs_as_reference(graph, torch.randn(3), torch.randn(3))


def test_runs_ops_that_write_to_clones_of_their_arguments():
    r = GraphRecorder()
    x, y = r.input([3]), r.input([3])
    written = r.value(x.type)
    r.nodes.append(Node(torch.ops.aten.add_.Tensor, (x, y), {}, (written,), mutates=(0,)))
    assert_runs_as_reference(r.graph(written, x), torch.randn(3), torch.randn(3))


def test_runs_ops_that_are_plain_functions():
    r = GraphRecorder()
    x = r.input([4, 4])
    diagonal = r.value(tensor_type([4], strides=(5,)))
    r.nodes.append(Node(strided_view, (x, (4,), (5,), 0), {}, (diagonal,)))
    assert_runs_as_reference(r.graph(diagonal), torch.randn(4, 4))


@pytest.mark.parametrize("name", ["<lambda>", "Model.forward", "class", "3d"])
def test_any_name_gives_a_function(name):
    r = GraphRecorder()
    x = r.input([2])
    assert_runs_as_reference(r.graph(r.aten.neg.default(x), name=name), torch.randn(2))


def test_short_form_reads_back():
    r = GraphRecorder()
    x = r.input([4, 6], strides=(1, 4))
    values, indices = r.aten.sort.default(r.aten.exp.default(x))
    graph = r.graph(values, indices)
    assert print_short(graph_from_text(print_short(graph))) == print_short(graph)


def test_short_form_does_not_depend_on_ids():
    def numbered(first: int) -> Graph:
        x, y = Value(first, tensor_type([2])), Value(first + 5, tensor_type([2]))
        return Graph((x,), (Node(torch.ops.aten.neg.default, (x,), {}, (y,)),), (y,))

    assert print_short(numbered(0)) == print_short(numbered(40))
