"""Sizes of tensors that nothing computes with are open as those of others are."""

from __future__ import annotations

import pytest
import torch

import dsjit
from dsjit.api.entry import jitted_of

CASES = {
    "is not used": (lambda x, other: x.sin().sum(0), lambda n: (torch.randn(n, 3), torch.randn(n, 7))),
    "alone changes, and is not used": (lambda x, other: x.sin(), lambda n: (torch.randn(4, 3), torch.randn(n, 7))),
    "is asked for its sizes": (
        lambda x, other: x[:, :1] * other.shape[1] + other.shape[0],
        lambda n: (torch.randn(4, 3), torch.randn(n, 2 * n + 1)),
    ),
    "says how much is made": (
        lambda x, other: torch.zeros(len(other), 3) + x,
        lambda n: (torch.randn(3), torch.randn(n)),
    ),
    "is in a dictionary": (
        lambda batch: batch["x"].sin() + torch.arange(batch["y"].shape[1]),
        lambda n: ({"x": torch.randn(3, n), "y": torch.randn(2, n), "z": torch.randn(n)},),
    ),
    "is an optional mask": (
        lambda x, mask=None, weights=None: x.softmax(-1) if mask is None else x.masked_fill(mask, 0.0),
        lambda n: (torch.randn(n, n + 3), torch.rand(n, n + 3) > 0.5, torch.randn(n, 1)),
    ),
}


@pytest.mark.filterwarnings("error::dsjit.DsjitWarning")
@pytest.mark.parametrize("name", CASES)
def test_a_tensor_that_nothing_computes_with_costs_one_more_trace_then_none(name):
    function, arguments = CASES[name]
    jitted = dsjit.jit(function)
    for size in range(4, 16):
        given = arguments(size)
        torch.testing.assert_close(jitted(*given), function(*given))
    assert jitted_of(jitted).counters.traces == 2


@pytest.mark.filterwarnings("error::dsjit.DsjitWarning")
@pytest.mark.parametrize("requires_grad", [False, True])
def test_gradients_flow_past_it(requires_grad):
    weight = torch.randn(3, 3, requires_grad=True)

    def function(x, other):
        return ((x @ weight).sin() * other.shape[1] + other.shape[0]).sum()

    jitted = dsjit.jit(function)
    for size in range(4, 16):
        x, other = torch.randn(size, 3), torch.randn(size + 1, size + 5, requires_grad=requires_grad)
        gradients = [torch.autograd.grad(each(x, other), weight)[0] for each in (jitted, function)]
        torch.testing.assert_close(*gradients)
    assert jitted_of(jitted).counters.traces == 2


def test_a_size_of_it_that_python_uses_as_a_number_stays_exact():
    def function(x, other):
        for _ in range(other.shape[0]):
            x = x + 1
        return x

    jitted = dsjit.jit(function)
    for size in (2, 3, 4):
        assert torch.equal(jitted(torch.zeros(3), torch.randn(size)), torch.full((3,), float(size)))
    assert jitted_of(jitted).counters.traces == 3


def test_with_dynamic_true_the_first_program_is_for_all_sizes_of_it():
    jitted = dsjit.jit(lambda x, other: x + other.shape[0], dynamic=True)
    for size in (4, 7, 9):
        assert torch.equal(jitted(torch.zeros(3, 5), torch.randn(size)), torch.full((3, 5), float(size)))
    assert jitted_of(jitted).counters.traces == 1
