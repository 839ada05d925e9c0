"""The programs of the deliberate miscompiles: small, each with the line that is to be blamed marked `# here`."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def total(x):
    y = x * 2
    return y.sum(-1)  # here


def square_total(x):
    y = x * 2
    return y.sum(-1)  # here


def largest(x):
    y = x * 2
    return y.amax(-1) + 1  # here


def smallest(x):
    y = x * 2
    return y.amin(-1) + 1  # here


def some(x):
    y = x > 0
    return y.any(-1)  # here


def every(x):
    y = x < 0
    return y.all(-1)  # here


def place_of_largest(x):
    y = x * 1.5
    return y.argmax(-1)  # here


def first_smallest(x):
    y = x * 2
    return y.permute(2, 1, 0).argmin()  # here


def difference(x, y):
    a = x + y
    b = a - x  # here
    return b * 3


def quotient(x, y):
    a = x + y
    b = a / y  # here
    return b * 3


def less(x, y):
    a = x + 1
    return a < y  # here


def choice(x, y):
    a = x + 1
    return torch.where(a > 0, a, y)  # here


def larger(x, y):
    a = x + 1
    return torch.maximum(a, y)  # here


def floors(x):
    a = x + 1
    return a.floor()  # here


def rounds(x):
    a = x + 1
    return a.round()  # here


def floor_quotient(x):
    a = x + 1
    return a // 4  # here


def remainders(x):
    a = x + 1
    return a % 4  # here


def multiply_add(x, y, z):
    a = x * y
    return a + z  # here


def exponential(x):
    a = x * 2
    return a.exp() + 1  # here


def shortened(x):
    a = x * 3
    return a.bfloat16()  # here


def widened(x):
    a = x + 1
    return a.long()  # here


def tail(x):
    return x * 2  # here


def window(x):
    a = x[:, 0:8]
    return a * 2  # here


def transposed(x, y):
    a = x.t()
    return a + y  # here


def joined(x, y):
    a = x * 2
    return torch.cat((a, y), -1)  # here


def gated(x):
    a = x * 2
    return F.silu(a)  # here


def twice(x):
    a = x * 2
    b = x * 3  # here
    return a + b


def scaled(x):
    a = x.clone()
    return a * 0.125  # here


def normalised(x):
    a = x * 2
    return a.softmax(-1)  # here


def written(x):
    y = x * 2
    x.add_(1)  # here
    return y


def noises(x):
    a = x + torch.rand_like(x)
    return a * torch.rand_like(x)  # here


def product(x, y):
    a = x * 2
    return a @ y  # here


def two_kernels(x, y):
    a = (x * 2) @ y
    return (a + 3) @ y  # here


def long_lived(x, y):
    a = x * 2  # here
    b = a @ y
    c = b.exp() @ y
    d = c.exp() @ y
    return d + a @ x


def folded(x, y):
    a = x @ y
    b = a + a.flip(0)  # here
    return b @ y


def two_results(x):
    a = x * 2  # here
    b = x + 1
    return a, b


def multiplied(x):
    y = x + 1
    return y.prod(-1)  # here


def long_sum(x):
    y = x * 2
    return y.sum()  # here


def dense(x):
    a = x[:, ::2]
    return a.contiguous() * 1.5  # here


def mask(x):
    a = torch.full((5,), 2.0)  # here
    return x + a


def positive(x):
    if x.sum() > 0:
        return x * 2
    return x - 3  # here


def mean_of(x):
    a = x * 2
    return a.mean(-1)  # here


def either_way(x, y):
    made = x * 2 if x.sum() > 0 else x - 3
    if y.sum() > 0:
        return made * y  # here
    return made - y


def times(x, factor):
    y = x + 1
    return y * factor  # here


def doubled(x):
    y = x + 1
    x.mul_(2)  # here
    return y


class Counter(torch.nn.Module):
    """Counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls = self.calls + x.dim()  # here
        return x * 2


def half(x):
    y = x + 1
    return y * int(x.sum().item() * 0.5)  # here


def rest(x):
    y = x + 1
    return y * (x.sum().item() - 3.0)  # here


@torch.enable_grad()
def gates(x, y):
    one = (x @ y).tanh()  # here
    other = (y @ x).sigmoid()
    return one * other


@torch.enable_grad()
def noisy(x, y):
    noise = torch.rand(8, 8)  # here
    return x * noise * y


class Descent(torch.nn.Module):
    """A whole training step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(5))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1, weight_decay=0.5)

    def forward(self, x):
        with torch.enable_grad():
            loss = (x * self.weight).sum()
        loss.backward()
        self.optimizer.step()  # here
        return loss.detach()


class AdamDescent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(5))
        self.optimizer = torch.optim.Adam([self.weight], lr=0.1)

    def forward(self, x):
        with torch.enable_grad():
            loss = (x * self.weight).sum()
        loss.backward()
        self.optimizer.step()  # here
        return loss.detach()


class Accumulation(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(5))

    def forward(self, x):
        with torch.enable_grad():
            loss = (x * self.weight).sum()  # here
        loss.backward()
        return x * 2
