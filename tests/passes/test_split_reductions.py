"""Two-stage reductions."""

from __future__ import annotations

import pytest
import torch

from dsjit.ir.verify_graph import verify_graph
from dsjit.passes.reference import run_reference
from dsjit.passes.split_reductions import split_reductions
from tests.graphs import GraphRecorder

aten = torch.ops.aten


def graph_of(op, shape, *args, dtype=torch.float32, strides=None, **kwargs):
    r = GraphRecorder()
    return r.graph(r.call(op, r.input(shape, dtype, strides), *args, **kwargs))


def reductions(graph):
    return [node for node in graph.nodes if node.op is not aten.view.default and node.op is not aten._to_copy.default]


@pytest.mark.parametrize(
    ("op", "shape", "args"),
    [
        (aten.sum.default, [40, 1000], ()),
        (aten.sum.dim_IntList, [4096, 8], ([0],)),
        (aten.sum.dim_IntList, [3, 400, 5, 10], ([1, 3], True)),
        (aten.sum.dim_IntList, [2, 8, 9000], ([1, 2], False)),
        (aten.amax.default, [2, 4096], ([1], True)),
        (aten.amin.default, [64, 64, 2], ([0, 1],)),
        (aten.any.dim, [2, 4096], (1,)),
        (aten.all.default, [64, 64], ()),
        (aten.prod.dim_int, [4096], (0,)),
    ],
)
def test_two_stages_compute_the_same(op, shape, args):
    is_truth = op in (aten.any.dim, aten.all.default)
    graph = graph_of(op, shape, *args, dtype=torch.bool if is_truth else torch.int64)
    split = split_reductions(graph, extent=1000)
    verify_graph(split, run_ops=True)
    assert len(reductions(split)) == 2
    x = torch.randint(0, 2, shape, dtype=torch.int64)
    x = x.bool() if is_truth else x * 2 - 1
    assert torch.equal(run_reference(split, [x])[0], run_reference(graph, [x])[0])


def test_the_first_stage_has_many_points():
    split = split_reductions(graph_of(aten.sum.default, [1 << 20]))
    first, second = reductions(split)
    assert first.output.type.numel >= 64
    assert second.output.type.numel == 1


def test_a_leading_dimension_of_the_right_size_is_kept_whole():
    split = split_reductions(graph_of(aten.sum.default, [100, 4096]))
    assert [node.op for node in split.nodes] == [aten.sum.dim_IntList] * 2
    assert split.nodes[0].output.type.shape == (100,)


def test_sums_of_bf16_are_rounded_once():
    x = torch.rand(70000).to(torch.bfloat16)
    split = split_reductions(graph_of(aten.sum.default, [70000], dtype=torch.bfloat16))
    assert [node.output.type.dtype for node in reductions(split)] == [torch.float32] * 2
    exact = x.double().sum()
    (got,) = run_reference(split, [x])
    assert got.dtype is torch.bfloat16
    assert abs(got.double() - exact) <= abs(exact.to(torch.bfloat16).double() - exact) + exact * 2**-9


def test_a_split_dimension_need_not_be_dense():
    x = torch.randint(-5, 5, (3, 65536)).t()
    graph = graph_of(aten.sum.dim_IntList, x.shape, [0], dtype=torch.int64, strides=x.stride())
    split = split_reductions(graph)
    verify_graph(split, run_ops=True)
    assert len(reductions(split)) == 2
    assert torch.equal(run_reference(split, [x])[0], x.sum(0))


@pytest.mark.parametrize(
    ("op", "shape", "args"),
    [
        (aten.sum.dim_IntList, [16, 65536], ([1],)),
        (aten.sum.dim_IntList, [2, 1000], ([1],)),
        (aten.argmax.default, [65536], ()),
        (aten.sum.dim_IntList, [65537], ([0],)),
        (aten.sum.dim_IntList, [65536, 0], ([0],)),
    ],
    ids=["enough points", "short", "not associative", "prime", "empty"],
)
def test_left_whole(op, shape, args):
    graph = graph_of(op, shape, *args)
    assert split_reductions(graph) is graph
