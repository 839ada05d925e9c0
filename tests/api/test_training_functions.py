"""Calls with gradients through `torch.utils.checkpoint` and through functions that define their own backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import dsjit

COUNTED = []
SCALE = 2.0


def same_gradients(function, count=3):
    """Compares compiled calls with eager ones, and returns the jitted function."""
    jitted = dsjit.jit(function)
    for seed in range(count):
        found = []
        for each in (function, jitted):
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(3, 8, generator=generator).requires_grad_()
            w = torch.randn(8, 8, generator=generator).mul(0.3).requires_grad_()
            torch.manual_seed(seed)
            result = each(x, w)
            result.backward()
            found.append((result, x.grad, w.grad, torch.rand(1)))
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    return jitted


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return factor * x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 2 * ctx.factor * x, None


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return torch.clamp(gradient, -1, 1)


class Two(torch.autograd.Function):
    """Multiplies, where only one operand may want a gradient."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x @ y

    @staticmethod
    def backward(ctx, gradient):
        x, y = ctx.saved_tensors
        left = gradient @ y.t() if ctx.needs_input_grad[0] else None
        return left, x.t() @ gradient if ctx.needs_input_grad[1] else None


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient * SCALE


class Counting(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        COUNTED.append(1)
        return gradient


class Looking(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient if gradient.sum() > 0 else -gradient


class Shifting(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient + 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: Square.apply(x @ w, 3.0).sum(),
        lambda x, w: (StraightThrough.apply(x) @ w).sum(),
        lambda x, w: Two.apply(x.detach(), w).exp().sum(),
        lambda x, w: Two.apply(x, Square.apply(w, 0.5)).square().sum(),
        lambda x, w: Shifting.apply(x @ w).sum(),
    ],
)
def test_the_backward_of_a_function_is_recorded(function):
    assert same_gradients(function).counters.calls_compiled == 2


@pytest.mark.parametrize(
    ("custom", "reason"), [(Scaled, "reads SCALE"), (Counting, "reads COUNTED"), (Looking, "looked at")]
)
def test_a_backward_that_does_more_than_compute_runs_eagerly(custom, reason):
    COUNTED.clear()
    with pytest.warns(dsjit.DsjitWarning, match=reason):
        jitted = same_gradients(lambda x, w: custom.apply(x @ w).sum())
    assert jitted.counters.calls_compiled == 0
    assert len(COUNTED) in (0, 6)


def test_a_backward_that_makes_something_of_nothing_is_for_one_result():
    jitted = dsjit.jit(lambda x: (Shifting.apply(x).sum(), x.exp().sum()))
    with pytest.warns(dsjit.DsjitWarning, match="makes others of zeros"):
        jitted(torch.ones(3, requires_grad=True))


def block(x, w):
    return F.dropout(F.gelu(x @ w), 0.3) @ w


def checkpointed(x, w):
    hidden = checkpoint(block, x, w, use_reentrant=False)
    return checkpoint(lambda t: block(t, w), hidden, use_reentrant=False).square().sum()


def nested(x, w):
    def inner(t):
        return checkpoint(block, t, w, use_reentrant=False) * 2

    return checkpoint(inner, x, use_reentrant=False).exp().mean()


def on_one_way(x, w):
    hidden = checkpoint(block, x, w, use_reentrant=False)
    return hidden.sum() if hidden.sum() > 0 else hidden.exp().sum()


@pytest.mark.parametrize("function", [checkpointed, nested, on_one_way])
def test_checkpoints_give_eagers_gradients(function):
    assert same_gradients(function, 4).counters.calls_compiled >= 2


def test_what_is_under_a_checkpoint_is_computed_again():
    first, second = nn.Linear(16, 64), nn.Linear(64, 16)

    def part(x):
        return second(torch.tanh(first(x)) @ torch.eye(64)).relu()

    def plain(x):
        return part(part(x)).sum()

    def saving(x):
        return checkpoint(part, checkpoint(part, x, use_reentrant=False), use_reentrant=False).sum()

    x = torch.randn(4, 16)
    kept = [sum(each.nbytes for each in dsjit.explain(function)(x).kept) for function in (plain, saving)]
    assert kept[1] == 4 * 16 * 4
    assert kept[0] > 4 * kept[1]


def test_sizes_may_be_open_under_a_checkpoint():
    w = torch.randn(8, 8).mul(0.3).requires_grad_()
    jitted = dsjit.jit(checkpointed)
    for rows in (3, 4, 2, 6):
        x, grads = torch.randn(rows, 8), []
        for each in (checkpointed, jitted):
            torch.manual_seed(rows)
            grads.append(torch.autograd.grad(each(x, w), w))
        torch.testing.assert_close(*grads)
    assert jitted.counters.traces == 2


def counts(x, w):
    def part(t):
        COUNTED.append(1)
        return t @ w

    return checkpoint(part, x, use_reentrant=False).exp().sum()


def writes(x, w):
    seen = COUNTED_ROWS

    def part(t):
        seen.add_(1)
        return t @ w

    return checkpoint(part, x, use_reentrant=False).exp().sum()


COUNTED_ROWS = torch.zeros(())


def draws_anew(x, w):
    return checkpoint(block, x, w, use_reentrant=False, preserve_rng_state=False).sum()


@pytest.mark.parametrize(
    ("function", "reason"),
    [(counts, "eager does twice"), (writes, "eager does twice"), (draws_anew, "random numbers are drawn under")],
)
def test_what_eager_does_twice_runs_eagerly(function, reason):
    COUNTED.clear()
    with pytest.warns(dsjit.DsjitWarning, match=reason):
        jitted = same_gradients(function)
    assert jitted.counters.calls_compiled == 0
