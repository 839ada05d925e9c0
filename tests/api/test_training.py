"""Calls whose results carry gradients: what eager's forward and backward give, compiled ones give."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F

import dsjit


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 64)
        self.down = nn.Linear(64, 16)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 16)

    def forward(self, x):
        images = x[:, :12].reshape(-1, 3, 2, 2)
        features = F.relu_(self.norm(self.conv(images)))
        return self.head(F.max_pool2d(self.last(features), 2).flatten(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = (t.view(1, -1, 4, 4).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(-1, 16))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 16)

    def forward(self, x):
        tokens = x.detach().argmax(-1)
        return F.linear(self.table(tokens) * x, self.table.weight)


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16).requires_grad_(False)
        self.second = nn.Linear(16, 16)

    def forward(self, x):
        with torch.no_grad():
            scale = x.abs().mean()
        return self.second(torch.tanh(self.first(x))) / (scale + 1)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        return F.dropout(torch.relu(self.linear(F.dropout(x, 0.3, self.training))), 0.5, self.training)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(16, 16)

    def forward(self, x):
        state = torch.zeros_like(x)
        for _ in range(3):
            state = self.cell(x, state)
        return state


MODELS = [Residual, ConvNet, Attention, Tied, Frozen, Dropping, Recurrent]


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(actual, expected):
    assert {name for name, grad in actual.items() if grad is None} == {n for n, g in expected.items() if g is None}
    for name, grad in expected.items():
        if grad is not None:
            assert actual[name].stride() == grad.stride()
            torch.testing.assert_close(actual[name], grad, rtol=2e-5, atol=2e-6)


def pair(model_class):
    torch.manual_seed(0)
    eager = model_class()
    return eager, dsjit.jit(copy.deepcopy(eager))


def compiled_calls(jitted):
    return dsjit.stats().total.calls_compiled


@pytest.fixture(autouse=True)
def fresh_stats():
    dsjit.reset_stats()


@pytest.mark.parametrize("wants_input_gradient", [False, True])
@pytest.mark.parametrize("model_class", MODELS)
def test_steps_of_training_are_eager_ones(model_class, wants_input_gradient):
    eager, jitted = pair(model_class)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in (eager, jitted)]
    for step in range(4):
        results = []
        for model in (eager, jitted):
            torch.manual_seed(step)
            x = torch.randn(8, 16, requires_grad=wants_input_gradient)
            loss = (model(x) ** 2).mean()
            loss.backward()
            results.append((loss, x.grad, torch.get_rng_state(), [b.clone() for b in model.buffers()]))
        (loss, grad, state, buffers), (loss_, grad_, state_, buffers_) = results
        torch.testing.assert_close(loss_, loss)
        assert (grad is None) == (grad_ is None)
        if grad is not None:
            torch.testing.assert_close(grad_, grad, rtol=2e-5, atol=2e-6)
        assert torch.equal(state, state_)
        for mine, theirs in zip(buffers_, buffers, strict=True):
            torch.testing.assert_close(mine, theirs)
        assert_same_gradients(gradients(jitted), gradients(eager))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        # The same weights again: how Adam divides tiny gradients by their size would part them.
        jitted.load_state_dict(eager.state_dict())
    assert dsjit.stats().total.calls_compiled == 3


def two_losses(x, w, v):
    return (x @ w).tanh().sum(), (x @ v).sigmoid().mean(), x.detach() * 2


@pytest.mark.parametrize("chosen", [(0,), (1,), (0, 1)])
def test_only_some_results_are_differentiated(chosen):
    x, w, v = torch.randn(4, 3), torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    jitted = dsjit.jit(two_losses)
    jitted(x, w, v)
    results = []
    for function in (two_losses, jitted):
        w.grad = v.grad = None
        out = function(x, w, v)
        assert [t.requires_grad for t in out] == [True, True, False]
        sum(out[number] for number in chosen).backward()
        results.append({"w": w.grad, "v": v.grad})
    assert_same_gradients(results[1], results[0])
    assert jitted.counters.calls_compiled == 1


def test_backward_can_run_again_while_the_graph_is_retained():
    w = torch.randn(3, requires_grad=True)
    jitted = dsjit.jit(lambda x: (x * w).exp().sum())
    x = torch.randn(3)
    jitted(x).backward()
    w.grad = None
    loss = jitted(x)
    loss.backward(retain_graph=True)
    once = w.grad.clone()
    loss.backward()
    torch.testing.assert_close(w.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_hooks_of_the_caller_run_once_a_backward_and_never_while_tracing():
    w = torch.randn(3, requires_grad=True)
    seen = []
    w.register_hook(lambda grad: seen.append(grad.clone()))
    jitted = dsjit.jit(lambda x: (x * w).sum())
    losses = [jitted(torch.ones(3)) for _ in range(2)]
    assert not seen
    for loss in losses:
        loss.backward()
    assert len(seen) == 2


def test_gradients_flow_on_into_what_made_the_arguments():
    w = torch.randn(4, 4, requires_grad=True)
    jitted = dsjit.jit(lambda x: torch.relu(x) * 2)
    grads = []
    for _ in range(3):
        w.grad = None
        jitted(w @ w).sum().backward()
        grads.append(w.grad)
    torch.testing.assert_close(grads[1], grads[0])
    torch.testing.assert_close(grads[2], grads[0])


def test_what_eager_does_not_keep_may_be_written_to_before_the_backward():
    def function(x, w):
        return torch.relu(x + w) * 3

    results = []
    jitted = dsjit.jit(function)
    w = torch.randn(5, requires_grad=True)
    jitted(torch.ones(5), w)
    for each in (function, jitted):
        w.grad = None
        x = torch.ones(5)
        y = each(x, w)
        x.zero_()
        y.detach().zero_()
        y.sum().backward()
        results.append(w.grad)
    assert torch.equal(*results)


def test_what_eager_keeps_may_not():
    jitted = dsjit.jit(lambda x, w: (x * w).sum())
    w = torch.randn(5, requires_grad=True)
    jitted(torch.ones(5), w)
    x = torch.ones(5)
    loss = jitted(x, w)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives_are_refused():
    w = torch.randn(3, requires_grad=True)
    jitted = dsjit.jit(lambda: (w**3).sum())
    jitted()
    with pytest.raises(dsjit.GradientError, match=r"second derivatives .* run it eagerly"):
        torch.autograd.grad(jitted(), w, create_graph=True)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def with_own_function(x, w):
    return Doubled.apply(x * w).sum()


def with_a_look(x, w):
    y = (x * w).sum()
    return y if y > 0 else -y


def with_a_written_argument(x, w):
    x.mul_(w)
    return x.sum()


def checkpointed(x, w):
    COUNTED.append(1)
    return torch.utils.checkpoint.checkpoint(lambda t: COUNTED.append(2) or (t * w).exp(), x, use_reentrant=False).sum()


COUNTED = []


def test_code_under_checkpoint_runs_as_often_as_in_eager():
    counts = []
    jitted = dsjit.jit(checkpointed)
    for each in (checkpointed, jitted, jitted):
        COUNTED.clear()
        w = torch.randn(4, requires_grad=True)
        each(torch.ones(4), w).backward()
        counts.append(list(COUNTED))
    assert counts == [counts[0]] * 3


def backward_by_the_tensor(x, w):
    loss = (x * w).sum()
    loss.backward()
    return loss.detach()


def backward_by_torch(x, w):
    loss = (x * w).sum()
    torch.autograd.backward([loss])
    return loss.detach()


@pytest.mark.parametrize("function", [backward_by_the_tensor, backward_by_torch])
def test_gradients_that_the_function_accumulates_itself_are_accumulated_each_time(function):
    grads = []
    jitted = dsjit.jit(function)
    for each in (function, jitted):
        w = torch.randn(4, requires_grad=True)
        for _ in range(3):
            each(torch.ones(4), w)
            grads.append(w.grad.clone())
    assert [torch.equal(*pair) for pair in zip(grads[:3], grads[3:], strict=True)] == [True] * 3


def test_gradients_that_the_function_asks_for_are_compiled():
    def force(positions):
        energy = (positions.square().sum(-1) + 1).rsqrt().sum()
        return -torch.autograd.grad(energy, positions)[0]

    jitted = dsjit.jit(force)
    for seed in range(3):
        torch.manual_seed(seed)
        positions = torch.randn(5, 3, requires_grad=True)
        torch.testing.assert_close(jitted(positions), force(positions))
    assert jitted.counters.calls_compiled == 2


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (checkpointed, "eager does twice"),
        (with_a_written_argument, "changes the metadata of args"),
    ],
)
def test_what_cannot_be_compiled_runs_eagerly_and_says_why(function, reason):
    jitted = dsjit.jit(function)
    w = torch.randn(4, requires_grad=True)
    results = []
    for each in (function, jitted, jitted):
        w.grad = None
        with pytest.warns(dsjit.DsjitWarning, match=reason) if len(results) == 1 else nullcontext():
            each(torch.ones(4), w).backward()
        results.append(w.grad)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_grad_mode_and_what_requires_gradients_are_guarded():
    linear = nn.Linear(4, 4)
    jitted = dsjit.jit(lambda x: linear(x).relu())
    x = torch.randn(2, 4)
    for _ in range(2):
        assert jitted(x).requires_grad
        with torch.no_grad():
            assert not jitted(x).requires_grad
        linear.requires_grad_(False)
        assert not jitted(x).requires_grad
        linear.weight.requires_grad_(True)
        jitted(x).sum().backward()
        assert linear.weight.grad is not None
        assert linear.bias.grad is None
        linear.requires_grad_(True)
        linear.zero_grad()


def test_fewer_bytes_are_kept_than_by_eager():
    """Of GELU between two products, eager keeps both what goes in and what comes out."""
    first, second = nn.Linear(512, 256, bias=False), nn.Linear(256, 64, bias=False)

    def function(x):
        return second(F.gelu(first(x)))

    def kept(call):
        storages = {}
        own = {p.untyped_storage().data_ptr() for p in (first.weight, second.weight, x)}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = call(x)
        assert result.requires_grad
        return sum(storages.values())

    x = torch.randn(32, 512)
    jitted = dsjit.jit(function)
    jitted(x)
    assert kept(function) == 2 * 32 * 256 * 4
    assert kept(jitted) == 32 * 256 * 4
