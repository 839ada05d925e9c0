"""The Graph checker accepts what is sound and names what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dsjit.errors import VerificationError
from dsjit.ir.graph import Graph, Node, Value, Write
from dsjit.ir.verify_graph import verify_graph
from tests.graphs import GraphRecorder, tensor_type

aten = torch.ops.aten


def neg(x: Value, y: Value) -> Node:
    return Node(aten.neg.default, (x,), {}, (y,))


@pytest.fixture
def xy() -> tuple[Value, Value]:
    return Value(0, tensor_type([4])), Value(1, tensor_type([4]))


def rejects(graph: Graph, message: str, **options: bool) -> None:
    with pytest.raises(VerificationError, match=message):
        verify_graph(graph, **options)


def test_accepts_a_sound_graph():
    r = GraphRecorder()
    x = r.input([4, 4])
    c = r.constant(torch.ones(4))
    y = r.aten.t.default(r.aten.add.Tensor(x, c))
    values, _ = r.aten.sort.default(y)
    verify_graph(r.graph(y, values, writes=(Write(x, values),)), run_ops=True)


def test_rejects_a_use_before_the_definition(xy):
    x, y = xy
    z = Value(2, y.type)
    rejects(Graph((x,), (neg(y, z), neg(x, y)), (z,)), "before it is defined")


def test_rejects_a_second_definition(xy):
    x, y = xy
    rejects(Graph((x,), (neg(x, y), neg(x, y)), (y,)), "defined twice")


def test_rejects_two_values_with_one_id(xy):
    x, y = xy
    rejects(Graph((x,), (neg(x, y), neg(x, Value(1, y.type))), (y,)), "defined twice")


def test_rejects_an_undefined_output(xy):
    x, y = xy
    rejects(Graph((x,), (), (y,)), "never defined")


def test_rejects_an_undefined_value_inside_a_list(xy):
    x, y = xy
    node = Node(aten.cat.default, ((x, y),), {}, (Value(2, tensor_type([8])),))
    rejects(Graph((x,), (node,), node.outputs), "before it is defined")


def test_rejects_a_write_to_something_that_is_no_input(xy):
    x, y = xy
    rejects(Graph((x,), (neg(x, y),), (), writes=(Write(y, x),)), "not an input")


def test_rejects_a_write_of_another_shape(xy):
    x, _ = xy
    y = Value(1, tensor_type([2, 2]))
    node = Node(aten.view.default, (x, (2, 2)), {}, (y,))
    rejects(Graph((x,), (node,), (), writes=(Write(x, y),)), "does not fit")


def test_rejects_a_constant_of_another_dtype(xy):
    x, y = xy
    rejects(Graph((x,), (), (x,), constants={y: torch.zeros(3)}), "constant")


def test_rejects_an_op_that_writes_to_its_argument(xy):
    x, y = xy
    node = Node(aten.neg_.default, (x,), {}, (y,))
    rejects(Graph((x,), (node,), (y,)), "writes to its argument 'self'")
    verify_graph(Graph((x,), (replace(node, mutates=(0,)),), (y,)), run_ops=True)


@pytest.mark.parametrize("type_", [tensor_type([5]), tensor_type([4], torch.int64)], ids=["wrong shape", "wrong dtype"])
def test_running_the_ops_finds_wrong_types(xy, type_):
    x, _ = xy
    node = neg(x, Value(1, type_))
    graph = Graph((x,), (node,), node.outputs)
    verify_graph(graph)
    rejects(graph, "result %1", run_ops=True)


def test_running_the_ops_finds_wrong_strides_of_views():
    x, y = Value(0, tensor_type([2, 3])), Value(1, tensor_type([3, 2]))
    node = Node(aten.t.default, (x,), {}, (y,))
    rejects(Graph((x,), (node,), (y,)), "strides", run_ops=True)


def test_running_the_ops_finds_calls_that_torch_rejects(xy):
    x, _ = xy
    node = Node(aten.view.default, (x, (3,)), {}, (Value(1, tensor_type([3])),))
    rejects(Graph((x,), (node,), node.outputs), "rejected by torch", run_ops=True)


def test_results_of_kernels_may_have_any_strides():
    x, y = Value(0, tensor_type([2, 3])), Value(1, tensor_type([2, 3], strides=(1, 2)))
    verify_graph(Graph((x,), (neg(x, y),), (y,)), run_ops=True)


def test_running_the_ops_draws_no_random_numbers():
    r = GraphRecorder()
    graph = r.graph(r.aten.rand.default([3]), r.aten.bernoulli.default(r.input([3])), r.aten.randperm.default(4))
    state = torch.get_rng_state()
    verify_graph(graph, run_ops=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_kernel_has_the_last_word_where_its_meta_kernel_disagrees():
    x, weight = Value(0, tensor_type([2, 5, 3], torch.bfloat16)), Value(1, tensor_type([5], torch.bfloat16))
    args = (x, weight, weight, weight, weight, False, 0.1, 1e-5)
    zeros = [torch.zeros(value.type.shape, dtype=torch.bfloat16) for value in args[:5]]
    real = torch.native_batch_norm(*zeros, *args[5:])
    outputs = tuple(Value(2 + n, tensor_type(t.shape, t.dtype)) for n, t in enumerate(real))
    verify_graph(Graph((x, weight), (Node(aten.native_batch_norm.default, args, {}, outputs),), outputs), run_ops=True)


def test_ops_whose_shapes_depend_on_data_are_taken_at_their_word(xy):
    x, _ = xy
    node = Node(aten.nonzero.default, (x,), {}, (Value(1, tensor_type([3, 1], torch.int64)),))
    verify_graph(Graph((x,), (node,), node.outputs), run_ops=True)
