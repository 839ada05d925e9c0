"""Whole training steps that use more of autograd than a plain backward: eager's answer, by a compiled program."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import dsjit
from tests.api.training import adamw, assert_same, assert_same_result, batch, pair, plain


def update(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def checkpointed(model, optimizer, x, y):
    hidden = checkpoint(lambda t: F.gelu(model.first(t)), x, use_reentrant=False)
    return update(optimizer, F.cross_entropy(model.second(hidden), y))


def checkpointed_by_a_second_backward(model, optimizer, x, y):
    hidden = checkpoint(lambda t: F.gelu(t) * 2, model.first(x), use_reentrant=True)
    return update(optimizer, F.cross_entropy(model.second(hidden), y))


def with_hooks_on_what_is_kept(model, optimizer, x, y):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        return update(optimizer, F.cross_entropy(model(x), y))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 2 * x


def with_a_function_of_the_users(model, optimizer, x, y):
    return update(optimizer, F.cross_entropy(model.second(Square.apply(model.first(x))), y))


def under_autocast(model, optimizer, x, y):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(x), y)
    return update(optimizer, loss)


def with_a_penalty_on_gradients(model, optimizer, x, y):
    loss = F.cross_entropy(model(x), y)
    (gradient,) = torch.autograd.grad(loss, model.first.weight, create_graph=True)
    return update(optimizer, loss + gradient.square().sum()).item()


def with_a_closure(model, optimizer, x, y):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return optimizer.step(closure)


def with_dropout(model, optimizer, x, y):
    return update(optimizer, F.cross_entropy(model.second(F.dropout(model.first(x), 0.3)), y))


def with_a_write_in_place(model, optimizer, x, y):
    hidden = model.first(x)
    hidden[:, :2] *= 0.5
    F.relu_(hidden)
    return update(optimizer, F.cross_entropy(model.second(hidden), y))


def unless_the_loss_is_infinite(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    if torch.isfinite(loss):
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize(
    "step",
    [
        checkpointed, checkpointed_by_a_second_backward, with_hooks_on_what_is_kept, with_a_function_of_the_users,
        under_autocast, with_a_penalty_on_gradients, with_a_closure, with_dropout, with_a_write_in_place,
        unless_the_loss_is_infinite,
    ],
)  # fmt: skip
def test_steps_are_eagers(step):
    eager, mine = pair(adamw)
    jitted = dsjit.jit(step)
    for number in range(5):
        results = []
        for function, trained in ((jitted, mine), (step, eager)):
            torch.manual_seed(number)
            results.append(function(*trained, *batch(number)))
        assert_same_result(*results)
        assert_same(mine, eager)
    assert jitted.counters.calls_compiled == 3


@pytest.mark.parametrize("scale", [1024.0, 2.0**40])
def test_steps_with_a_gradient_scaler_are_eagers(scale):
    def step(model, optimizer, x, y, scaler):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return norm

    eager, mine = pair(adamw)
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3) for _ in range(2)]
    jitted = dsjit.jit(step)
    for number in range(8):
        mine_norm = jitted(*mine, *batch(number), scalers[0])
        norm = step(*eager, *batch(number), scalers[1])
        torch.testing.assert_close(mine_norm, norm, rtol=1e-3, atol=1e-6, equal_nan=True)
        assert_same(mine, eager)
        assert scalers[0].get_scale() == scalers[1].get_scale()
    assert jitted.counters.calls_eager == 0
    assert jitted.counters.calls_compiled >= 3


def test_each_way_through_a_step_is_compiled_once():
    def step(model, optimizer, x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if loss > 1.1:
            loss = loss * 2
        loss.backward()
        optimizer.step()
        return loss

    eager, mine = pair(adamw)
    jitted = dsjit.jit(step)
    for number in range(12):
        assert_same_result(jitted(*mine, *batch(number % 6)), step(*eager, *batch(number % 6)))
        assert_same(mine, eager)
    assert jitted.counters.calls_eager == 0
    assert jitted.counters.calls_compiled >= 8


def test_another_batch_size_is_another_trace():
    eager, mine = pair(adamw)
    jitted = dsjit.jit(plain)
    for rows in (5, 5, 7, 5, 7, 5, 7):
        assert_same_result(jitted(*mine, *batch(rows, rows)), plain(*eager, *batch(rows, rows)))
        assert_same(mine, eager)
    assert jitted.counters.traces == 3
