"""The reference in double precision, and which answers it accepts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dsjit.ir.graph import Graph
from dsjit.oracle.exactness import exact_values
from dsjit.oracle.reference import run_with_precision
from tests.graphs import trace


def accepts(function, found, *tensors) -> bool:
    graph = trace(function, *tensors)
    return run_with_precision(graph, tensors).accepts(graph.outputs[0], found)


def test_values_are_in_double_precision_and_eagers_own() -> None:
    x = torch.tensor([1.0, 2.0])
    graph = trace(lambda x: (x / 3).exp(), x)
    found = run_with_precision(graph, [x])
    (value,) = graph.outputs
    assert torch.equal(found.eager[value], (x / 3).exp())
    assert torch.equal(found.precise[value], (x.double() / 3).exp())


def test_casts_to_narrow_dtypes_do_not_narrow_the_reference() -> None:
    x = torch.tensor([1 / 3])
    graph = trace(lambda x: x.bfloat16() * 1.0, x)
    assert torch.equal(run_with_precision(graph, [x]).precise[graph.outputs[0]], x.double())


def test_decisions_are_eagers() -> None:
    x = torch.tensor([0.1, 0.3])
    graph = trace(lambda x: x * 3 > 0.3, x)
    assert torch.equal(run_with_precision(graph, [x]).precise[graph.outputs[0]], x * 3 > 0.3)


def test_exact_ops_must_have_eagers_bits() -> None:
    x = torch.randn(100)
    right = x * 3 + 1
    assert accepts(lambda x: x * 3 + 1, right, x)
    assert not accepts(lambda x: x * 3 + 1, torch.nextafter(right, torch.tensor(torch.inf)), x)


def test_sums_may_be_added_up_in_another_order_but_not_be_wrong() -> None:
    x = torch.randn(50, 1000) * 100
    assert accepts(lambda x: x.sum(-1), torch.stack([row.flip(0).cumsum(0)[-1] for row in x]), x)
    assert not accepts(lambda x: x.sum(-1), x[:, :-1].sum(-1), x)
    assert not accepts(lambda x: x.sum(-1), x.sum(-1) * (1 + 1e-3), x)


def test_an_eager_answer_that_the_graph_does_not_explain_is_no_excuse() -> None:
    x = torch.randn(100)
    graph = trace(lambda x: x.exp(), x)
    reference = run_with_precision(graph, [x])
    (value,) = graph.outputs
    found = reference.eager[value]
    reference.eager[value] = found + 1
    assert not reference.accepts(value, found)


@pytest.mark.parametrize(
    ("function", "other", "x"),
    [
        (lambda x: F.gelu(x), lambda x: x * 0.5 * torch.erfc(-x * 0.5**0.5), torch.linspace(-9, -5, 50).double()),
        (
            lambda x: F.gelu(x, approximate="tanh"),
            lambda x: x * torch.sigmoid(2 * inner(x)),
            torch.linspace(-9, -5, 50),
        ),
        (lambda x: F.layer_norm(x, (1,)), torch.zeros_like, torch.tensor([[0.3], [0.7]]).half()),
    ],
)
def test_what_is_lost_inside_an_op_need_not_be_lost_in_the_same_way(function, other, x) -> None:
    """`1 + erf(x)`, `1 + tanh(x)`, and `x * scale - mean * scale` cancel."""
    assert not torch.allclose(function(x), other(x), rtol=1e-6, atol=0)
    assert accepts(function, other(x), x)
    assert not accepts(function, other(x) + 1e-3, x)


def inner(x: torch.Tensor) -> torch.Tensor:
    return (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)


def test_a_sample_of_a_single_number_may_lie_next_to_it_by_chance() -> None:
    """The norm of all gradients was blamed when roundings happened to cancel in the one run with moved operands."""
    graph = trace(lambda x: (x * x).exp().sum().sqrt(), torch.randn(50))
    (value,) = graph.outputs
    x = torch.randn(50)
    reference = run_with_precision(graph, [x])
    found = torch.nextafter(reference.eager[value], torch.tensor(torch.inf))
    for _ in range(5):
        found = torch.nextafter(found, torch.tensor(torch.inf))
    assert reference.accepts(value, found)
    reference.moved[value] = reference.precise[value] * (1 + 1e-9)
    assert reference.accepts(value, found)
    assert not reference.accepts(value, found * 1.001)


def test_where_numbers_are_denormal_a_step_of_them_is_a_rounding() -> None:
    """Rounded to the one step or the next, a product is other by a third, and its quotients are so, too."""
    x = torch.full((8,), 2.0**-9)
    exact = 3.3 * 2.0**-149 / 2.0**-9
    by_steps = {steps: torch.tensor(steps * 2.0**-140) for steps in (3, 4, 40)}

    def quotient(x):
        return x[:4].prod() * x[4:].prod() * 2.0**-77 * 3.3 / 2.0**-9

    assert quotient(x.double()).item() == pytest.approx(exact, rel=1e-6)
    assert accepts(quotient, by_steps[3], x)
    assert accepts(quotient, by_steps[4], x)
    assert not accepts(quotient, by_steps[40], x)


def with_last_op(graph: Graph, op) -> Graph:
    """One that may draw random numbers, with its first argument alone."""
    *others, last = graph.nodes
    return replace(graph, nodes=(*others, replace(last, op=op, args=last.args[:1], effect=True)))


def test_an_op_that_may_draw_random_numbers_and_does_not_is_in_double_precision() -> None:
    x = torch.linspace(-1, 1, 9)
    graph = with_last_op(trace(lambda x: F.leaky_relu(x.exp() - 1), x), torch.ops.aten.rrelu.default)
    found = run_with_precision(graph, [x])
    assert torch.equal(found.precise[graph.outputs[0]], F.rrelu(x.double().exp() - 1))


def test_random_numbers_are_eagers() -> None:
    x = torch.linspace(-1, 1, 9)
    graph = with_last_op(trace(lambda x: F.leaky_relu(x.exp()), x), torch.ops.aten.rand_like.default)
    found = run_with_precision(graph, [x])
    (value,) = graph.outputs
    assert torch.equal(found.precise[value], found.eager[value].double())
    assert torch.equal(found.moved[value], found.precise[value])


def test_only_the_values_asked_for_are_kept() -> None:
    x = torch.randn(4)
    graph = trace(lambda x: (x + 1).exp().neg(), x)
    assert set(run_with_precision(graph, [x], keep=graph.outputs).eager) == set(graph.outputs)


@pytest.mark.parametrize(
    ("function", "exact"),
    [
        (lambda x: x * 2 + 1, True),
        (lambda x: torch.where(x > 0, x, 0.0).bfloat16(), True),
        (lambda x: torch.cat((x[1:], x[:1])).amax(), True),
        (lambda x: x.sum(), False),
        (lambda x: x.sum() * 2, False),
        (lambda x: torch.add(x, x, alpha=3), False),
        (lambda x: torch.ops.aten.sub.Scalar(x, 0.1, 3), False),
        (lambda x: torch.ops.aten.sub.Scalar(x, 0.1, 1), True),
        (lambda x: x.tanh(), False),
    ],
)
def test_what_is_exact(function, exact: bool) -> None:
    graph: Graph = trace(function, torch.randn(8))
    assert (graph.outputs[0] in exact_values(graph, [*graph.inputs, *graph.constants])) is exact
