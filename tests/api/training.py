"""Models, batches and comparisons for tests of whole training steps."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.second = nn.Linear(12, 3)

    def forward(self, x):
        return self.second(F.gelu(self.first(x)))


def batch(seed, rows=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=generator), torch.randint(0, 3, (rows,), generator=generator)


def plain(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def pair(make_optimizer, seed=0):
    """Two equal models, with an optimizer each."""
    torch.manual_seed(seed)
    first = Net()
    second = copy.deepcopy(first)
    return [(model, make_optimizer(model.parameters())) for model in (first, second)]


def assert_same(actual, expected):
    (model, optimizer), (model_, optimizer_) = actual, expected
    for mine, theirs in zip(model.parameters(), model_.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        assert (mine.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6, equal_nan=True)
            assert mine.grad.stride() == theirs.grad.stride()
            assert mine.grad.requires_grad == theirs.grad.requires_grad
        state, state_ = optimizer.state[mine], optimizer_.state[theirs]
        assert state.keys() == state_.keys()
        for key, value in state_.items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-6)


def assert_same_result(actual, expected):
    if isinstance(expected, torch.Tensor):
        assert actual.requires_grad == expected.requires_grad
        assert actual.is_leaf == expected.is_leaf
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
