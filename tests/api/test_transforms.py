"""`torch.func` inside a jitted function: what its transforms run is part of the program."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vjp, vmap

import dsjit
from dsjit.api.entry import jitted_of

LAYER = nn.Linear(3, 2)
LAYERS = [nn.Linear(3, 2) for _ in range(3)]


def total(row: Tensor) -> Tensor:
    return (row * row * row).sum()


def ensemble(x: Tensor) -> Tensor:
    parameters, buffers = stack_module_state(LAYERS)
    return vmap(lambda p, b: functional_call(LAYER, (p, b), (x,)))(parameters, buffers)


def gradients_per_example(x: Tensor) -> Tensor:
    parameters = dict(LAYER.named_parameters())

    def loss(p: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(LAYER, p, (row,)).square().sum()

    return vmap(grad(loss), in_dims=(None, 0))(parameters, x)["weight"]


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "vmap": lambda x: vmap(total)(x),
    "vmap of two": lambda x: vmap(torch.dot)(x, x + 1),
    "grad": lambda x: grad(total)(x),
    "vmap of grad": lambda x: vmap(grad(total))(x),
    "grad of grad": lambda x: vmap(grad(lambda row: grad(total)(row).sum()))(x),
    "vjp": lambda x: vjp(torch.sin, x)[1](torch.ones_like(x))[0],
    "jvp": lambda x: jvp(torch.sin, (x,), (torch.ones_like(x),))[1],
    "jacrev": lambda x: jacrev(lambda row: row * row)(x[0]),
    "functional call": lambda x: functional_call(LAYER, {"weight": LAYER.weight * 2, "bias": LAYER.bias}, (x,)),
    "ensemble": ensemble,
    "gradients of each example": gradients_per_example,
}


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Torch loads modules when it first differentiates so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jvp(torch.sin, (torch.ones(1),), (torch.ones(1),))
        vmap(grad(total))(torch.ones(1, 1))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_transform_is_compiled(name: str) -> None:
    function = FUNCTIONS[name]
    jitted = dsjit.jit(function)
    with torch.no_grad():
        for number in range(4):
            x = torch.linspace(-1, 1, 12).view(4, 3) + number
            torch.testing.assert_close(jitted(x), function(x))
            LAYER.weight.add_(0.5)
    behind = jitted_of(jitted)
    assert behind is not None
    assert (behind.counters.traces, behind.counters.calls_eager) == (1, 0)


def test_gradients_flow_through_a_transform() -> None:
    jitted = dsjit.jit(gradients_per_example)
    for _ in range(3):
        x, found = torch.randn(4, 3), []
        for function in (gradients_per_example, jitted):
            LAYER.zero_grad()
            function(x).square().sum().backward()
            assert LAYER.weight.grad is not None
            found.append(LAYER.weight.grad.clone())
        torch.testing.assert_close(*found)
