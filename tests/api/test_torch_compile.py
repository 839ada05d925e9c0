"""A jitted function inside one that torch.compile runs: it is a call that torch.compile does not look into."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import dsjit
from tests.api.checks import counters_of


def scaled(x: torch.Tensor) -> torch.Tensor:
    return (x * 2 + 1).relu()


def compiled_by_torch(function: Any) -> Any:
    return torch.compile(function, backend="eager")


def test_a_jitted_function_is_called_by_a_function_of_torch_compile() -> None:
    inner = dsjit.jit(scaled)
    outer = compiled_by_torch(lambda x: inner(x - 1) * 3)
    for number in range(4):
        x = torch.arange(4.0) - number
        assert torch.equal(outer(x), scaled(x - 1) * 3)
    counters = counters_of(inner)
    assert (counters.calls_traced, counters.calls_compiled, counters.calls_eager) == (1, 3, 0)


def test_a_jitted_function_is_given_to_torch_compile() -> None:
    inner = dsjit.jit(scaled)
    outer = compiled_by_torch(inner)
    for number in range(3):
        x = torch.arange(4.0) - number
        assert torch.equal(outer(x), scaled(x))
    assert counters_of(inner).calls_compiled == 2


def test_a_module_of_torch_compile_is_jitted() -> None:
    module = nn.Sequential(nn.ReLU())
    module.compile(backend="eager")
    jitted = dsjit.jit(module)
    for number in range(3):
        x = torch.arange(4.0) - number
        assert torch.equal(jitted(x), x.relu())
    assert counters_of(jitted).calls_compiled == 2
