"""Calls with gradients in which Python looks at what tensors hold: eager's gradients, on each way."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import dsjit


def branch(x, w):
    hidden = torch.tanh(x @ w)
    if hidden.sum() > 0:
        return (hidden * 2).exp().sum()
    return (hidden * hidden).sum()


def logged(x, w):
    loss = (x @ w).square().mean()
    return loss, loss.item()


def scaled(x, w):
    loss = (x @ w).square().sum()
    return loss / (x > 0).sum().item()


def loop(x, w):
    count = 0
    while x.abs().sum() > 1:
        x = torch.tanh(x @ w) * 0.5
        count += 1
    return (x * w[:3]).sum() + count


def early_exit(x, w):
    for number in range(3):
        x = torch.tanh(x @ w)
        if x.max() < 0.9:
            return x.sum(), number
    return x.square().sum(), -1


def made_before_the_look(x, w):
    hidden = F.dropout(x @ w, 0.5)
    if hidden.sum() > 0:
        return hidden, hidden.t()
    return hidden, hidden.t() * 2


def unused_weight(x, w):
    if x.sum() > 0:
        return (x * 3).sum() + w.detach().sum()
    return (x @ w).sum()


def masked(x, w):
    return (x @ w)[x[:, 0] > 0].exp().sum()


@pytest.mark.parametrize(
    "function", [branch, logged, scaled, loop, early_exit, made_before_the_look, unused_weight, masked]
)
def test_each_way_has_eagers_gradients(function):
    generator = torch.Generator().manual_seed(0)
    # In float64: what is asked is which way's gradients they are, and sums cancel in float32.
    w = torch.randn(4, 4, generator=generator).double().requires_grad_()
    jitted = dsjit.jit(function)
    inputs = [torch.randn(3, 4, generator=generator).double() * scale for scale in (0.1, 2, 0.5, -1, 0.2, -3)]
    for seed, data in enumerate([*inputs, *inputs]):
        found = []
        for each in (function, jitted):
            x = data.clone().requires_grad_()
            w.grad = None
            torch.manual_seed(seed % len(inputs))
            results = each(x, w)
            parts = results if isinstance(results, tuple) else (results,)
            sum(part.sum() for part in parts if isinstance(part, torch.Tensor)).backward()
            found.append((results, x.grad, w.grad, torch.rand(1)))
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
        assert found[0][1].stride() == found[1][1].stride()
    assert jitted.counters.calls_compiled >= len(inputs)
    assert not jitted.verdicts


def test_the_part_before_a_look_is_compiled_once_and_runs_once():
    w = torch.randn(4, 4, requires_grad=True)
    jitted = dsjit.jit(branch)
    for x in (torch.ones(2, 4), -torch.ones(2, 4)):
        jitted(x, w).backward()
    (tree,) = jitted.trees
    assert (len(tree.branches), len(tree.leaves)) == (1, 2)


def test_what_the_graph_keeps_is_eagers_choice_to_free():
    w = torch.randn(4, 4, requires_grad=True)
    jitted = dsjit.jit(branch)
    for x in (torch.ones(2, 4), torch.ones(2, 4)):
        result = jitted(x, w)
        result.backward(retain_graph=True)
        result.backward()
        with pytest.raises(RuntimeError, match="second time"):
            result.backward()
    assert jitted.counters.calls_compiled == 1


def test_a_result_of_before_the_look_may_be_written_where_eager_lets_it_be():
    w = torch.randn(4, 4, requires_grad=True)
    jitted = dsjit.jit(made_before_the_look)
    x = torch.ones(2, 4)
    for seed in (0, 0, 0):
        grads = []
        for each in (made_before_the_look, jitted):
            torch.manual_seed(seed)
            first, second = each(x, w)
            first.mul_(3)
            grads.append(torch.autograd.grad(first.sum() + second.sum(), w))
        torch.testing.assert_close(*grads)


def test_statistics_are_written_once_on_each_way():
    seen = torch.zeros(())

    def function(x, w):
        seen.add_(1)
        loss = (x * w).sum()
        return loss * 2 if loss > 0 else loss

    jitted, w = dsjit.jit(function), torch.ones(3, requires_grad=True)
    for number, sign in enumerate((1, -1, 1, -1), start=1):
        jitted(sign * torch.ones(3), w).backward()
        assert seen == number
    torch.testing.assert_close(w.grad, torch.full((3,), 2.0))


def test_a_budget_bounds_no_call_with_looks():
    jitted, w = dsjit.jit(branch, memory_budget="1GiB"), torch.randn(4, 4, requires_grad=True)
    with pytest.warns(dsjit.DsjitWarning, match="memory_budget"):
        jitted(torch.ones(2, 4), w).backward()
    assert jitted.counters.calls_compiled == 0
