"""Sums that are cut into parts, for precision."""

from __future__ import annotations

import pytest
import torch

from dsjit.ir.verify_graph import verify_graph
from dsjit.ops.builder import Builder
from dsjit.passes.reference import run_reference
from dsjit.passes.short_chains import product_by_images, product_in_parts
from tests.graphs import GraphRecorder

aten = torch.ops.aten


def product(m, k, n, parts, turned=False, dtype=torch.float32):
    """The Graph of `product_in_parts` of an (m, k) and a (k, n) input, the latter column by column if `turned`."""
    r = GraphRecorder()
    rows, matrix = r.input([m, k], dtype), r.input([k, n], dtype, (1, k) if turned else None)
    b = Builder(r.count)
    result = product_in_parts(b, rows, matrix, parts)
    r.nodes += b.nodes
    return r.graph(result)


def arguments(graph):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(value.type.shape, generator=generator, dtype=value.type.dtype) for value in graph.inputs]
    return [
        torch.empty_strided(t.shape, value.type.strides, dtype=t.dtype).copy_(t)
        for t, value in zip(tensors, graph.inputs, strict=True)
    ]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 3, 12])
def test_the_parts_add_up_to_the_product(parts, turned):
    graph = product(5, 12, 7, parts, turned, torch.float64)
    verify_graph(graph, run_ops=True)
    rows, matrix = arguments(graph)
    torch.testing.assert_close(run_reference(graph, [rows, matrix])[0], rows @ matrix)


def test_one_part_is_a_plain_product():
    assert [node.op for node in product(5, 12, 7, 1).nodes] == [aten.mm.default]


@pytest.mark.parametrize("turned", [False, True])
def test_parts_are_read_where_they_are(turned):
    nodes = product(5, 12, 7, 3, turned).nodes
    assert {node.op for node in nodes} == {
        aten.view.default, aten.permute.default, aten.bmm.default, aten.sum.dim_IntList,
    }  # fmt: skip


def test_parts_of_16_are_more_precise_than_a_chain_of_256():
    whole, cut = product(64, 256, 64, 1), product(64, 256, 64, 16)
    inputs = arguments(whole)
    exact = inputs[0].double() @ inputs[1].double()
    errors = [(run_reference(graph, inputs)[0] - exact).square().mean().sqrt() for graph in (whole, cut)]
    assert errors[1] < errors[0]


def test_products_of_images_add_up_to_the_gradient_of_a_weight():
    r = GraphRecorder()
    layout = torch.empty((3, 8, 4, 5), device="meta").contiguous(memory_format=torch.channels_last).stride()
    left = r.input([3, 8, 4, 5], torch.float64, layout)
    right = r.input([3, 6, 4, 5], torch.float64, (120, 1, 30, 6))
    b = Builder(r.count)
    result = product_by_images(b, left, right)
    r.nodes += b.nodes
    graph = r.graph(result)
    verify_graph(graph, run_ops=True)
    assert [node.op for node in graph.nodes if node.op not in (aten.view.default, aten.permute.default)] == [
        aten.full.default, aten.addbmm.default,
    ]  # fmt: skip
    tangent, image = arguments(graph)
    expected = torch.einsum("bmhw,bnhw->mn", tangent, image)
    torch.testing.assert_close(run_reference(graph, [tangent, image])[0], expected)
