"""Ops are told apart by whether their shapes follow one rule far from where they were recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dsjit.ir.graph import Graph, Node, TensorType, Value, contiguous_strides
from dsjit.ir.polynomial import PolynomialFit
from dsjit.trace.shapes.far_sizes import has_stated_shapes, size_dependent_nodes

aten = torch.ops.aten

POINTS = ((4, 6), (3, 5), (2, 2), (7, 9), (10, 13))


def dense(tensor: torch.Tensor) -> TensorType:
    return TensorType(tuple(tensor.shape), tensor.dtype, tuple(tensor.stride()), tensor.device)


def recorded(op: Callable[..., Any], shape: tuple[int, ...], *more: Any, **keywords: Any) -> Graph:
    """One call of an op, on zeros."""
    x = Value(0, TensorType(shape, torch.float32, contiguous_strides(shape), torch.device("cpu")))
    results = op(torch.zeros(shape), *more, **keywords)
    every = [results] if isinstance(results, torch.Tensor) else results
    outputs = tuple([Value(number, dense(result)) for number, result in enumerate(every, 1)])
    return Graph((x,), (Node(op, (x, *more), keywords, outputs),), outputs)


def found(op: Callable[..., Any], shape: Callable[[int, int], tuple[int, ...]], *more: Any, **keywords: Any) -> bool:
    graphs = [recorded(op, shape(*point), *more, **keywords) for point in POINTS]
    return bool(size_dependent_nodes(graphs, PolynomialFit(POINTS), lambda point: True))


@pytest.mark.parametrize("shape", [lambda a, b: (a, b), lambda a, b: (a, 50), lambda a, b: (50, b)])
def test_a_result_as_long_as_the_shorter_side_is_found(shape):
    assert found(aten._linalg_svd.default, shape)
    assert found(aten.diagonal_copy.default, shape)


@pytest.mark.parametrize("op", [aten._linalg_det.default, aten.linalg_inv_ex.default])
def test_what_takes_square_matrices_alone_is_found_where_sizes_may_differ_elsewhere(op):
    assert not found(op, lambda a, b: (a, a))


@pytest.mark.parametrize("op", [aten.cumprod.default, aten.logcumsumexp.default])
def test_a_shape_that_follows_its_operand_is_trusted(op):
    assert not found(op, lambda a, b: (a, b), 0)


def test_sizes_that_do_not_matter_are_not_asked_about():
    graphs = [recorded(aten._linalg_svd.default, point) for point in POINTS]
    fit = PolynomialFit(POINTS)
    assert size_dependent_nodes(graphs, fit, lambda point: True) == {0}
    assert size_dependent_nodes(graphs, fit, lambda point: point[0] <= point[1]) == frozenset()


def test_shapes_of_a_node_are_compared_with_those_of_torch():
    (node,) = recorded(aten._linalg_svd.default, (3, 5)).nodes
    (other,) = recorded(aten._linalg_svd.default, (5, 3)).nodes
    assert has_stated_shapes(node)
    assert not has_stated_shapes(Node(node.op, node.args, node.kwargs, other.outputs))


def test_a_call_that_torch_refuses_states_nothing():
    (node,) = recorded(aten.linalg_inv_ex.default, (3, 3)).nodes
    wide = Value(9, TensorType((3, 5), torch.float32, (5, 1), torch.device("cpu")))
    assert not has_stated_shapes(Node(node.op, (wide,), node.kwargs, node.outputs))
