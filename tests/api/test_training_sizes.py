"""Calls with gradients whose sizes change: one program serves all sizes, and gives eager's gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dsjit
from tests.api.training import adamw, assert_same, assert_same_result, batch, pair, plain

pytestmark = pytest.mark.filterwarnings("error::dsjit.DsjitWarning")
"""A backward that runs op by op says so."""


class Block(nn.Module):
    """One layer of a transformer, on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, 8)
        self.mixing = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 17)

    def forward(self, tokens):
        batch, length = tokens.shape
        x = self.embedding(tokens)
        q, k, v = (part.view(batch, length, 2, 4).transpose(1, 2) for part in self.mixing(x).split(8, dim=-1))
        scores = (q @ k.transpose(-1, -2)).masked_fill(torch.ones(length, length).tril() == 0, float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, 8)
        logits = self.head(self.norm(x + mixed))
        return F.cross_entropy(logits[:, :-1].reshape(-1, 17), tokens[:, 1:].reshape(-1)), logits


class Image(nn.Module):
    """Convolutions and batch norms, which write their statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3)
        )
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3))).square().mean(), None


class Narrowing(nn.Module):
    """What passes and fusion do with it depends on sizes: few sums of many elements, small maps of many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(16),
            nn.Conv2d(8, 160, 1), nn.BatchNorm2d(160), nn.ReLU6(),
        )  # fmt: skip
        self.head = nn.Linear(160, 5)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3))).square().mean(), None


def tokens(size, generator):
    return torch.randint(0, 17, size, generator=generator)


def pixels(size, generator):
    return torch.randn(size[0], 3, 8, 8, generator=generator)


def many_pixels(size, generator):
    return torch.randn(size[0], 3, 32, 32, generator=generator)


@pytest.mark.parametrize(
    ("make", "inputs", "sizes"),
    [
        (Block, tokens, [(4, 7), (3, 7), (5, 7), (2, 7), (9, 7)]),
        (Block, tokens, [(4, 7), (3, 5), (4, 9), (6, 6)]),
        (Image, pixels, [(4,), (3,), (7,), (2,)]),
        (Narrowing, many_pixels, [(8,), (6,), (5,), (40,), (2,)]),
    ],
)
def test_the_second_size_is_the_last_that_is_traced(make, inputs, sizes):
    torch.manual_seed(0)
    model = make()
    expected = copy.deepcopy(model)
    jitted = dsjit.jit(lambda x: model(x))
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        x = inputs(size, generator)
        results = [jitted(x), expected(x)]
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
        for loss, _ in results:
            loss.backward()
        for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
            assert mine.grad.stride() == theirs.grad.stride()
        for mine, theirs in zip(model.buffers(), expected.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs)
    assert (jitted.counters.traces, jitted.counters.calls_compiled) == (2, len(sizes) - 2)


def test_any_results_may_be_differentiated():
    w = torch.randn(3, 4, requires_grad=True)
    jitted = dsjit.jit(lambda x: ((x @ w).tanh(), (x * 2).sum(0) @ w))
    for rows in (2, 5, 3, 7):
        x = torch.randn(rows, 3, requires_grad=True)
        for chosen in ((0,), (1,), (0, 1)):
            grads = []
            for results in (jitted(x), ((x @ w).tanh(), (x * 2).sum(0) @ w)):
                grads.append(torch.autograd.grad(sum(results[n].square().sum() for n in chosen), (x, w)))
            torch.testing.assert_close(*grads)
    assert jitted.counters.traces == 2


def test_the_call_that_opens_the_sizes_writes_once_and_says_so_once():
    total = torch.zeros(3)

    def function(x, w):
        total.add_((x * w).detach().sum(0))
        return (x * w).sum()

    jitted, w = dsjit.jit(function), torch.randn(3, requires_grad=True)
    expected, versions = torch.zeros(3), []
    for rows in (2, 4, 5, 6):
        x, before = torch.randn(rows, 3), total._version
        jitted(x, w).backward()
        expected += (x * w).detach().sum(0)
        torch.testing.assert_close(total, expected)
        versions.append(total._version - before)
    assert versions == [1, 1, 1, 1]
    assert jitted.counters.traces == 2


def test_gradients_that_are_expanded_follow_the_sizes():
    jitted = dsjit.jit(lambda x: x.sum(1))
    for rows in (2, 5, 3):
        x = torch.randn(rows, rows + 1, requires_grad=True)
        jitted(x).sum().backward()
        assert torch.equal(x.grad, torch.ones(rows, rows + 1))
    assert jitted.counters.traces == 2


def test_a_size_of_one_is_a_program_of_its_own():
    w = torch.randn(3, 2, requires_grad=True)
    jitted = dsjit.jit(lambda x: (x @ w).exp())
    for rows in (4, 3, 1, 1, 6):
        x = torch.randn(rows, 3)
        jitted(x).sum().backward()
        (expected,) = torch.autograd.grad((x @ w).exp().sum(), w)
        torch.testing.assert_close(w.grad, expected)
        w.grad = None
    assert jitted.counters.traces == 3


def test_without_gradients_calls_that_write_are_open_too():
    cache = torch.zeros(4)

    def function(x):
        cache.mul_(0.5).add_(x.sum(0))
        return x - cache

    jitted, expected = dsjit.jit(function), torch.zeros(4)
    for rows in (3, 5, 2, 8):
        x = torch.randn(rows, 4)
        expected = expected * 0.5 + x.sum(0)
        torch.testing.assert_close(jitted(x), x - expected)
        torch.testing.assert_close(cache, expected)
    assert jitted.counters.traces == 2


def accumulating(model, optimizer, x, y):
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss.detach()


def zeroing_in_place(model, optimizer, x, y):
    optimizer.zero_grad(set_to_none=False)
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def clipping(model, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    return norm


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)


def returning_a_number(model, optimizer, x, y):
    return plain(model, optimizer, x, y).item()


@pytest.mark.parametrize(
    ("step", "make"),
    [
        (plain, adamw), (plain, momentum), (accumulating, adamw), (zeroing_in_place, adamw), (clipping, momentum),
        (returning_a_number, adamw),
    ],
)  # fmt: skip
def test_a_whole_step_is_traced_for_one_other_size_and_no_more(step, make):
    mine, eager = pair(make), pair(make)
    trained, expected = mine[0], eager[0]
    jitted = dsjit.jit(step)
    for number, rows in enumerate((5, 5, 5, 3, 4, 5, 6, 2)):
        results = [each(*state, *batch(number, rows)) for each, state in ((jitted, trained), (step, expected))]
        assert_same_result(*results)
        assert_same(trained, expected)
    assert jitted.counters.traces == 3
    assert jitted.counters.calls_compiled == 5


def test_the_rehearsal_of_a_step_leaves_gradients_and_counts_of_writes_as_they_were():
    (model, optimizer), _ = pair(adamw)
    jitted = dsjit.jit(plain)
    versions = []
    for number, rows in enumerate((5, 5, 5, 3, 4)):
        before = [parameter._version for parameter in model.parameters()]
        jitted(model, optimizer, *batch(number, rows))
        gradients = [parameter.grad for parameter in model.parameters()]
        assert all(now is then for now, then in zip((p.grad for p in model.parameters()), gradients, strict=True))
        versions.append([p._version - then for p, then in zip(model.parameters(), before, strict=True)])
    assert versions[3] == versions[1]


def test_an_open_call_asks_whether_gradients_are_wanted():
    jitted = dsjit.jit(lambda x, w: (x * w).exp())
    w = torch.randn(3, requires_grad=True)
    for rows in (2, 3, 4):
        assert jitted(torch.ones(rows, 3), w).requires_grad
    assert not jitted(torch.ones(5, 3), w.detach()).requires_grad
    x = torch.ones(4, 3, requires_grad=True)
    jitted(x, w).sum().backward()
    assert x.grad is not None
