"""What training whole models found in dsjit, reduced: each case ran eagerly, or op by op, for a fault of dsjit's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dsjit
from tests.api.checks import call_compiled, counters_of

Options = dict[str, Any]
Gradients = list[torch.Tensor]


def gradients_of(call: Callable[[], torch.Tensor], module: nn.Module) -> Gradients:
    module.zero_grad()
    call().backward()
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(
    "module",
    [nn.LSTM(6, 8), nn.LSTM(6, 8, num_layers=2, batch_first=True), nn.LSTM(6, 8, bidirectional=True)],
    ids=["one layer", "two layers", "both ways"],
)
@pytest.mark.filterwarnings("error::dsjit.DsjitWarning")
def test_an_lstm_is_trained_by_a_compiled_program(module: nn.LSTM) -> None:
    """Programs run without grad mode, in which oneDNN's layer left out what its backward reads."""
    jitted = dsjit.jit(module)
    for rows in (3, 3, 3, 5, 5):
        x = torch.randn(rows, 4, 6)
        found = gradients_of(lambda x=x: jitted(x)[0].sin().sum(), module)
        torch.testing.assert_close(found, gradients_of(lambda x=x: module(x)[0].sin().sum(), module))
    with torch.no_grad():
        jitted(x)
        torch.testing.assert_close(call_compiled(jitted, x), module(x))
    assert counters_of(jitted).calls_eager == 0


@pytest.mark.filterwarnings("error::dsjit.DsjitWarning")
def test_the_gradient_of_elements_behind_a_whole_dimension_is_compiled() -> None:
    """The quick entry of `index_put` refuses None among the indices, which stands for that dimension."""
    rows = torch.tensor([0, 1, 2])
    scale = nn.ParameterList([nn.Parameter(torch.randn(4, 4))])
    jitted = dsjit.jit(lambda x: (x * scale[0])[:, rows, rows].sin().sum())
    for _ in range(3):
        x = torch.randn(5, 4, 4)
        found = gradients_of(lambda x=x: jitted(x), scale)
        torch.testing.assert_close(found, gradients_of(lambda x=x: jitted.__wrapped__(x), scale))


def test_a_kernel_is_not_joined_with_what_needs_it_by_way_of_a_later_one() -> None:
    """The search for a way between two kernels left out those that begin behind the second: fusion made a cycle."""
    x, mean = torch.randn(4, 6), torch.zeros(6)

    def step(layer: nn.Linear) -> torch.Tensor:
        layer.zero_grad()
        y = layer(x)
        columns = torch.zeros(4, 12)
        columns[:, ::2] = y
        y.relu_()
        put = y.index_put((torch.tensor([0, 1]),), torch.tensor(2.0))
        loss = (y - mean).abs_().sum() + put.pow(2).sum()
        loss.backward()
        return loss

    jitted = dsjit.jit(step)
    layer = nn.Linear(6, 6)
    for _ in range(2):
        jitted(layer)
    found = (call_compiled(jitted, layer), [parameter.grad for parameter in layer.parameters()])
    torch.testing.assert_close(found, (step(layer), [parameter.grad for parameter in layer.parameters()]))


def test_statistics_may_be_updated_between_a_forward_and_its_backward() -> None:
    """Compiled calls counted the update as a write, so that the traced call's backward was refused (a GAN's critic)."""
    module = nn.BatchNorm1d(6)
    jitted, reference = dsjit.jit(module), nn.BatchNorm1d(6)
    for _ in range(3):
        real, fake = torch.randn(2, 8, 6)
        found = gradients_of(lambda x=real, y=fake: jitted(x).sin().sum() + jitted(y).sum(), module)
        expected = gradients_of(lambda x=real, y=fake: reference(x).sin().sum() + reference(y).sum(), reference)
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(module.state_dict(), reference.state_dict())


class Averaged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.scale = nn.Parameter(torch.ones(6), requires_grad=False)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("last", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean.lerp_(x.mean(0), 0.5)
        self.last.copy_(x[0])
        self.scale.data.clamp_(-0.5, 0.5)
        return self.norm(x)


@pytest.mark.parametrize("gradients", [False, True])
def test_autograd_counts_the_writes_of_a_compiled_call_that_it_counts_in_eager(gradients: bool) -> None:
    eager, module = Averaged(), Averaged()
    jitted = dsjit.jit(module)
    with torch.set_grad_enabled(gradients):
        for rows in (8, 8, 5, 5):
            x = torch.randn(rows, 6)
            eager(x)
            jitted(x)
            for (name, mine), theirs in zip(module.state_dict().items(), eager.state_dict().values(), strict=True):
                assert mine._version == theirs._version, name
    assert counters_of(jitted).calls_compiled >= 2
    torch.testing.assert_close(module.state_dict(), eager.state_dict())


@pytest.mark.parametrize(
    "options",
    [{"padding": "valid"}, {"padding": "same"}, {"padding": "valid", "groups": 4}, {"dilation": [2]}],
    ids=str,
)
@pytest.mark.filterwarnings("error::dsjit.DsjitWarning")
def test_the_gradient_of_a_convolution_with_one_number_for_both_dimensions_is_compiled(options: Options) -> None:
    """Autograd keeps `padding="valid"` as one number, where the layouts of the backward were chosen by two."""
    first = nn.Conv2d(4, 4, 3, padding=1)
    weights = nn.ModuleList([first, nn.Conv2d(4, 4, 3, groups=options.get("groups", 1), bias=False)])

    def convolved(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(first(x).relu(), weights[1].weight, **options).sin().sum()

    jitted = dsjit.jit(convolved)
    for _ in range(3):
        x = torch.randn(2, 4, 9, 9)
        found = gradients_of(lambda x=x: jitted(x), weights)
        expected = gradients_of(lambda x=x: convolved(x), weights)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("error::dsjit.DsjitWarning")
def test_a_loop_may_be_followed_by_looks_at_the_counters_of_its_rounds() -> None:
    """What a loop hands on does not hold those of earlier rounds: there was no program, but an AssertionError."""

    def step(layer: nn.Linear, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> torch.Tensor:
        z = torch.zeros_like(x)
        with torch.no_grad():
            for _ in range(30):
                after = torch.tanh(0.3 * layer(z) + x)
                if (after - z).abs().max() < 1e-4:
                    break
                z = after
        optimizer.zero_grad()
        loss = torch.tanh(0.3 * layer(z) + x).pow(2).mean()
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(2):  # the first one imports what the second one finds
        torch.manual_seed(1)
        layer, jitted = nn.Linear(8, 8), dsjit.jit(step)
        reference = copy.deepcopy(layer)
        optimizers = [torch.optim.SGD(each.parameters(), lr=0.05, momentum=0.9) for each in (layer, reference)]
        for _ in range(4):
            x = torch.randn(4, 8)
            torch.testing.assert_close(jitted(layer, optimizers[0], x), step(reference, optimizers[1], x))
        assert jitted.counters.calls_eager == 0
        torch.testing.assert_close(layer.state_dict(), reference.state_dict())
