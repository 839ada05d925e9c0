"""Scatters over what an earlier segment made write where it lies, and never over what somebody still has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dsjit
from dsjit.api.entry import jitted_of
from tests.api.checks import assert_same, counters_of


def scattered(x: Tensor, mask: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for number in range(3):
        rows = (mask == number).nonzero().view(-1)
        if len(rows) == 0:
            continue
        out.index_add_(0, rows, x[rows] * (number + 1))
    return out


def copied_into(x: Tensor, mask: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for number in range(3):
        rows = (mask == number).nonzero().view(-1)
        if len(rows) == 0:
            continue
        out.index_copy_(0, rows, x[rows] * (number + 1))
    return out


def of_a_copy(x: Tensor, mask: Tensor) -> Any:
    out = x.clone()
    rows = (mask == 1).nonzero().view(-1)
    out.index_add_(0, rows, x[rows])
    return out, x


def looked_at_afterwards(x: Tensor, mask: Tensor) -> Any:
    out = x * 2
    if mask.sum() > 0:
        out.index_copy_(0, mask.clamp(0, 1)[:1], x[:1] - 5)
    return out.sum() if out[0].sum() > 0 else out


def kept_before(x: Tensor, mask: Tensor) -> Any:
    out = x * 2
    found = [out.clone(), out]
    if mask.sum() > 0:
        later = out.index_add(0, mask.clamp(0, 1), x)
        found.append(later)
    return found


def used_twice(x: Tensor, mask: Tensor) -> Any:
    out = x + 1
    if mask.sum() > 0:
        return out.scatter_add(0, mask[:, None].clamp(0, 1).expand_as(x), out)
    return out.scatter(0, mask[:, None].clamp(0, 1).expand_as(x), x) - out


def constant(x: Tensor, mask: Tensor) -> Any:
    out = torch.arange(6.0).view(3, 2)
    if x.sum() > 0:
        out.index_add_(0, mask.clamp(0, 2), x)
    return out


@pytest.mark.parametrize(
    "function", [scattered, copied_into, of_a_copy, looked_at_afterwards, kept_before, used_twice, constant]
)
def test_results_and_what_somebody_has_are_eagers(function: Callable[..., Any]) -> None:
    jitted = dsjit.jit(function)
    masks = ([0, 1, 2], [1, 1, 0], [0, 2, 1], [0, 0, 0], [2, 1, 1])
    for sign in (1.0, -1.0):
        for mask in masks * 2:
            x = torch.tensor([[1.0, -2.0], [3.0, 4.0], [0.5, 6.0]]) * sign
            mine, theirs = (x.clone(), torch.tensor(mask)), (x.clone(), torch.tensor(mask))
            assert_same(jitted(*mine), function(*theirs))
            assert_same(mine, theirs)
    assert counters_of(jitted).calls_eager == 0


@pytest.mark.parametrize("function", [scattered, copied_into], ids=["native", "library"])
def test_what_is_handed_on_is_written_where_it_lies(function: Callable[..., Tensor]) -> None:
    jitted = dsjit.jit(function)
    for mask in ([0, 1, 2], [1, 1, 0], [0, 2, 1]):
        jitted(torch.ones(3, 2), torch.tensor(mask))
    found = jitted_of(jitted)
    assert found is not None
    sources = [compilation.program.source for compilation in found.compilations]
    assert any("return [a" in source for source in sources)
    assert any("out=a" in source for source in sources) == (function is copied_into)
