"""Tensors that are made of numpy's arrays, and functions with a cache that answer with tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dsjit
from dsjit.api.entry import jitted_of

TABLE = np.arange(3.0)


@functools.lru_cache
def positions(width: int) -> Tensor:
    return torch.arange(width) * 2.0


@functools.lru_cache(maxsize=1)
def embedded(width: int, mask: Tensor) -> Tensor:
    return mask.cumsum(0) + width


def legacy_constructor(x: Tensor) -> Tensor:
    return x + torch.IntTensor([3, 4, 5])


def indices_from_numpy(x: Tensor) -> Tensor:
    return x[torch.from_numpy(np.arange(2))]


def array_that_existed(x: Tensor) -> Tensor:
    return x + torch.from_numpy(TABLE) + torch.as_tensor(TABLE)


def cached_by_a_constant(x: Tensor) -> Tensor:
    return x + positions(x.shape[0])


def cached_by_a_new_tensor(x: Tensor) -> Tensor:
    mask = x > 0
    return x + embedded(3, mask) + embedded(3, mask)


def written_after_it_was_shared(x: Tensor) -> Tensor:
    array = np.zeros(3)
    shared = torch.from_numpy(array)
    array[0] = 5
    return x + shared


def written_as_a_tensor(x: Tensor) -> Tensor:
    torch.from_numpy(TABLE).add_(1)
    return x + 1


def handed_out(x: Tensor) -> Tensor:
    return torch.from_numpy(TABLE)


COMPILED = [legacy_constructor, indices_from_numpy, array_that_existed, cached_by_a_constant, cached_by_a_new_tensor]
EAGER = [written_after_it_was_shared, written_as_a_tensor, handed_out]


def results(function: Callable[[Tensor], Any], jit: Callable[[Any], Any]) -> tuple[Any, list[Any]]:
    TABLE[:] = (0.0, 1.0, 2.0)
    jitted, seen = jit(function), []
    for number in range(6):
        if number == 4:
            TABLE[1] += 3
        result = jitted(torch.arange(3.0) + number)
        seen += [result.clone(), TABLE.copy().tolist(), np.shares_memory(result.numpy(), TABLE)]
    return jitted, seen


@pytest.mark.parametrize("function", COMPILED + EAGER, ids=lambda function: function.__name__)
def test_calls_are_as_in_eager(function: Callable[[Tensor], Any]) -> None:
    (_, expected), (jitted, found) = results(function, lambda f: f), results(function, dsjit.jit)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    behind = jitted_of(jitted)
    assert behind is not None
    assert behind.counters.calls_compiled >= 3 if function in COMPILED else behind.counters.calls_compiled == 0
