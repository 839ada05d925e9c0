"""`tensor.data = other`: of tensors made in the call, and of the caller's, with all that shares their memory."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsjit
from dsjit.api.entry import jitted_of

Case = Callable[[SimpleNamespace, Tensor], Any]


def replaced(state: SimpleNamespace, x: Tensor) -> Any:
    state.a.data = state.a.data * 2 + x
    return state.a + 1


def twice(state: SimpleNamespace, x: Tensor) -> Any:
    state.a.data = x * 2
    state.a.data = state.a.data + state.b
    return state.a * 1


def swapped(state: SimpleNamespace, x: Tensor) -> Any:
    state.a.data, state.b.data = state.b.data, state.a.data
    return state.a - state.b + x


def shares_the_argument(state: SimpleNamespace, x: Tensor) -> Any:
    state.a.data = x
    state.a.add_(1)
    return x * 2


def written_afterwards(state: SimpleNamespace, x: Tensor) -> Any:
    state.a.data = x * 2
    state.a.mul_(3)
    return state.a + x


def old_memory_is_written_through_a_view(state: SimpleNamespace, x: Tensor) -> Any:
    part = state.a[1:]
    state.a.data = x * 2
    part.add_(1)
    return part + state.a[1:], part


def made_in_the_call(state: SimpleNamespace, x: Tensor) -> Any:
    y = x * 2
    z = y[1:]
    y.data = state.a
    y.add_(1)
    return y + x, z


def made_and_returned(state: SimpleNamespace, x: Tensor) -> Any:
    y = x * 2
    y.data = (y.data + 1).clamp(min=0)
    return y


def on_one_way_only(state: SimpleNamespace, x: Tensor) -> Any:
    if x.sum() > 3:
        state.a.data = x - 1
    return state.a * 2


def other_shape(state: SimpleNamespace, x: Tensor) -> Any:
    state.a.data = torch.cat([state.a.data, x])
    return state.a.sum()


CASES: list[Case] = [
    replaced, twice, swapped, shares_the_argument, written_afterwards, old_memory_is_written_through_a_view,
    made_in_the_call, made_and_returned, on_one_way_only, other_shape,
]  # fmt: skip

STAYING = [case for case in CASES if case not in (other_shape, old_memory_is_written_through_a_view)]


def play(case: Case, jit: Callable[[Any], Any]) -> list[Any]:
    """What can be seen after each call, with aliases of the memory that the tensors had before."""
    state = SimpleNamespace(a=nn.Parameter(torch.arange(3.0)), b=torch.ones(3) * 5)
    function = jit(lambda x: case(state, x))
    seen: list[Any] = []
    kept = []
    with torch.no_grad():
        for number in range(5):
            kept += [state.a.detach(), state.b.detach()]
            x = torch.arange(3.0) + number
            result = function(x)
            results = result if isinstance(result, tuple) else (result,)
            seen += [each.clone() for each in (*results, x, state.a, state.b, *kept)]
            for tensor in (*results, x):
                tensor.add_(100)  # whoever shares its memory shows it
            seen += [each.clone() for each in (*results, x, state.a, state.b, *kept)]
            seen.append([each.data_ptr() == state.a.data_ptr() for each in (*results, x, state.b, *kept)])
    return seen


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_everything_is_as_in_eager(case: Case) -> None:
    expected, found = play(case, lambda f: f), play(case, dsjit.jit)
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("case", STAYING, ids=lambda case: case.__name__)
def test_calls_stay_compiled(case: Case) -> None:
    state = SimpleNamespace(a=nn.Parameter(torch.arange(3.0)), b=torch.ones(3) * 5)
    jitted = dsjit.jit(lambda x: case(state, x))
    with torch.no_grad():
        for number in range(5):
            jitted(torch.arange(3.0) + number)
    behind = jitted_of(jitted)
    assert behind is not None
    assert behind.counters.calls_eager == 0
    assert behind.counters.calls_compiled >= 3


def test_gradients_flow_as_in_eager() -> None:
    layer = nn.Linear(3, 2)

    def function(x: Tensor) -> Tensor:
        y = layer(x).exp()
        z = y * y
        y.data = y.data.clamp(max=1.0)
        return (y * z).sum()

    jitted = dsjit.jit(function)
    for _ in range(3):
        x = torch.randn(4, 3)
        gradients = []
        for each in (function, jitted):
            layer.zero_grad()
            each(x).backward()
            assert layer.weight.grad is not None
            gradients.append(layer.weight.grad.clone())
        torch.testing.assert_close(*gradients)
