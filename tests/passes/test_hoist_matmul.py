"""Products hoisted over slices."""

from __future__ import annotations

import pytest
import torch

from dsjit.ir.verify_graph import verify_graph
from dsjit.passes.cse import eliminate_common_subexpressions
from dsjit.passes.drop_copies import drop_copies
from dsjit.passes.hoist_matmul import hoist_matmul
from dsjit.passes.pipeline import run_passes
from dsjit.passes.reference import run_reference
from tests.graphs import trace

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.linear.default)
LAYER = torch.nn.Linear(6, 5)
PLAIN = torch.nn.Linear(6, 5, bias=False)


def products(graph):
    return [node for node in graph.nodes if node.op in PRODUCTS]


def traced(function, *tensors):
    """A trace as the pass gets it: equal transposes of a weight are one Value."""
    graph = trace(function, *tensors)
    verify_graph(graph, run_ops=True)
    return eliminate_common_subexpressions(graph)


def windows(x, layer):
    return torch.cat([layer(x[:, n : n + 3]).sum(1) for n in range(x.shape[1] - 2)])


def steps(x, layer):
    return torch.stack([layer(x[:, n]) for n in range(x.shape[1])])


def halves(x, layer):
    return torch.cat([layer(part) for part in x.split(4, dim=1)], dim=1)


def rows_of_matrix(x, layer):
    flat = x.view(-1, 6)
    return torch.cat([layer(flat[n : n + 8]) for n in range(0, 16, 2)])


def permuted(x, layer):
    return torch.cat([layer(x.transpose(0, 1)[n:]) for n in range(2)])


@pytest.mark.parametrize("layer", [LAYER, PLAIN], ids=["bias", "no bias"])
@pytest.mark.parametrize("function", [windows, steps, halves, rows_of_matrix, permuted])
def test_one_product_serves_all_slices(function, layer):
    x = torch.randn(2, 8, 6)
    graph = traced(lambda x: function(x, layer), x)
    hoisted = hoist_matmul(graph)
    verify_graph(hoisted, run_ops=True)
    assert len(products(graph)) > 1
    assert len(products(hoisted)) == 1
    torch.testing.assert_close(run_reference(hoisted, [x]), run_reference(graph, [x]))


def test_biases_are_added_once():
    graph = hoist_matmul(traced(lambda x: windows(x, LAYER), torch.randn(2, 8, 6)))
    assert sum(node.op is aten.add.Tensor for node in graph.nodes) == 1


def test_each_weight_has_its_own_product():
    other = torch.nn.Linear(6, 5)
    x = torch.randn(2, 8, 6)
    graph = traced(lambda x: steps(x, LAYER) + steps(x, other), x)
    hoisted = hoist_matmul(graph)
    assert len(products(hoisted)) == 2
    torch.testing.assert_close(run_reference(hoisted, [x]), run_reference(graph, [x]))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: LAYER(x[:, :2]).sum() + LAYER(x[:, 2:4]).sum(),
        lambda x: LAYER(x[:, 1:]).sum(),
        lambda x: LAYER(x[:, :, :6].exp()).sum() + LAYER(x.exp()).sum(),
    ],
    ids=["fewer rows than the whole", "a single slice", "no common base"],
)
def test_left_alone(function):
    graph = traced(function, torch.randn(2, 8, 6))
    assert hoist_matmul(graph) is graph


def depths(graph):
    """How many products the matrix products of a graph add up in one chain, at most."""
    ops = (aten.mm.default, aten.bmm.default, aten.addmm.default, aten.linear.default)
    operand = {aten.addmm.default: 1}
    return {node.args[operand.get(node.op, 0)].type.shape[-1] for node in graph.nodes if node.op in ops}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("rows", "depth"), [(1, 16), (8, 16), (9, 64)])
def test_products_of_few_rows_are_replaced_by_one_in_parts(rows, depth, bias):
    layer = torch.nn.Linear(64, 5, bias=bias)
    x = torch.randn(64, 64)
    graph = traced(lambda x: torch.cat([layer(part) for part in x[: 64 // rows * rows].split(rows)]), x)
    hoisted = hoist_matmul(graph)
    verify_graph(hoisted, run_ops=True)
    assert depths(hoisted) == {depth}
    torch.testing.assert_close(run_reference(hoisted, [x]), run_reference(graph, [x]))


@pytest.mark.parametrize(("depth", "parts"), [(24, 1), (32, 2), (48, 3), (74, 2), (71, 1), (1024, 16)])
def test_parts_are_equal_and_not_too_short(depth, parts):
    layer = torch.nn.Linear(depth, 5, bias=False)
    graph = traced(lambda x: torch.cat([layer(part) for part in x.split(1)]), torch.randn(16, depth))
    assert depths(hoist_matmul(graph)) == {depth // parts}


def test_products_in_bfloat16_stay_whole():
    layer = torch.nn.Linear(64, 5, dtype=torch.bfloat16)
    x = torch.randn(16, 64, dtype=torch.bfloat16)
    graph = traced(lambda x: torch.cat([layer(part) for part in x.split(1)]), x)
    assert depths(hoist_matmul(graph)) == {64}


def test_slices_of_columns_are_not_rows():
    weight = torch.randn(3, 4)
    graph = traced(lambda x: torch.cat([x[:, :3] @ weight, x[:, 3:] @ weight]), torch.randn(8, 6))
    assert hoist_matmul(graph) is graph


def test_a_returned_product_stays_a_tensor_of_its_own():
    x = torch.randn(4, 8, 6)
    graph = traced(lambda x: [PLAIN(x[n]) for n in range(4)], x)
    hoisted = hoist_matmul(graph)
    outputs = run_reference(hoisted, [x])
    assert len({tensor.untyped_storage().data_ptr() for tensor in outputs}) == 4
    torch.testing.assert_close(outputs, run_reference(graph, [x]))


def test_views_of_a_returned_product_share_its_memory():
    def function(x):
        parts = [PLAIN(x[n]) for n in range(4)]
        return [parts[0], parts[0].view(-1), parts[1].view(40), parts[1].view(2, 20), parts[2] + 1, parts[3].sum()]

    x = torch.randn(4, 8, 6)
    graph = traced(function, x)
    hoisted = hoist_matmul(graph)
    verify_graph(hoisted, run_ops=True)
    assert len(products(hoisted)) == 1
    wanted, got = run_reference(graph, [x]), run_reference(hoisted, [x])
    torch.testing.assert_close(got, wanted)
    pointers = [tensor.untyped_storage().data_ptr() for tensor in got]
    assert [pointers.index(pointer) for pointer in pointers] == [0, 0, 2, 2, 4, 5]


@pytest.mark.parametrize("shape", [(2, 8, 6), (3, 2, 8, 6)])
def test_products_of_hoisted_results_are_hoisted_only_over_their_own_rows(shape):
    square = torch.nn.Linear(6, 6)

    def function(x):
        y = square(x)
        return torch.cat([square(y[..., n : n + 4, :]) for n in range(4)], -2)

    x = torch.randn(shape)
    graph = traced(function, x)
    hoisted = hoist_matmul(graph)
    assert len(products(hoisted)) == 2
    torch.testing.assert_close(run_reference(hoisted, [x]), run_reference(graph, [x]))


def test_the_pipeline_leaves_no_copy_between_the_products():
    def attend(x):
        outputs = []
        for n in range(x.shape[1] - 2):
            window = x[:, n : n + 3]
            weights = torch.softmax(torch.bmm(LAYER(x[:, n : n + 1]), LAYER(window).transpose(1, 2)), -1)
            outputs.append(torch.bmm(weights, PLAIN(window)))
        return torch.cat(outputs, 1)

    x = torch.randn(2, 8, 6)
    graph = trace(attend, x)
    result = run_passes(graph, check=True)
    assert len(products(result)) == 2
    assert not any(node.op is aten.clone.default for node in result.nodes)
    torch.testing.assert_close(run_reference(result, [x]), run_reference(graph, [x]))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, ::2].contiguous().exp() @ torch.ones(6, 2),
        lambda x: x[:, :4].contiguous(),
        lambda x: x.mT.contiguous().view(2, -1) @ torch.ones(48, 2),
        lambda x: x[:, :, ::2].contiguous() @ torch.ones(2, 3, 2),
    ],
    ids=["read by a kernel", "returned", "view needs the copy", "no stride is 1"],
)
def test_copies_that_are_needed_stay(function):
    graph = trace(function, torch.randn(2, 8, 6))
    assert drop_copies(graph) is graph
