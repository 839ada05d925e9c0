"""Sizes that depend on data: one program for every count, and the answer of eager for each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.api.jitted import Jitted

WEIGHT = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))


def same(found: Any, expected: Any) -> None:
    """Equal in types, shapes, strides and bits."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    elif isinstance(expected, tuple | list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert found == expected


def with_positives(count: int, rows: int = 12) -> torch.Tensor:
    """(rows, 4), in `count` rows of which the first number is positive."""
    x = torch.linspace(-1, 1, rows * 4).view(rows, 4).clone()
    x[:, 0] = -1.0
    x[torch.arange(count) * 5 % rows if rows % 5 else torch.arange(count), 0] = 0.5
    return x


def called_with(function: Callable[..., Any], counts: Sequence[int]) -> Jitted:
    """The jitted function, after calls with so many rows in each, which were compared with eager."""
    jitted = dsjit.jit(function)
    with torch.no_grad():
        for count in counts:
            x = with_positives(count)
            same(jitted(x), function(x))
    behind = jitted_of(jitted)
    assert behind is not None
    assert behind.counters.calls_eager == 0
    return behind


def chosen(x: torch.Tensor) -> torch.Tensor:
    return x[x[:, 0] > 0]


def selected_by_rows(x: torch.Tensor) -> torch.Tensor:
    (rows,) = (x[:, 0] > 0).nonzero(as_tuple=True)
    return torch.relu(x[rows] @ WEIGHT) + 1


def written_back(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    mask = x[:, 0] > 0
    out[mask] = (x[mask] * 2).sigmoid()
    return out


def added_at_rows(x: torch.Tensor) -> torch.Tensor:
    rows, columns = (x > 0).nonzero(as_tuple=True)
    return torch.zeros_like(x).index_add_(0, rows, x[rows] * columns[:, None])


def two_of_one_mask(x: torch.Tensor) -> torch.Tensor:
    mask = x[:, 0] > 0
    return x[mask] + (x * 3)[mask] + mask.nonzero()


def sizes_in_results(x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    found = x[x[:, 0] > 0]
    return found.mean(1), len(found), found.numel()


def new_tensors(x: torch.Tensor) -> torch.Tensor:
    count = (x[:, 0] > 0).nonzero().shape[0]
    return torch.arange(count * 2).view(count, 2) + torch.ones(count, 1)


def reshaped(x: torch.Tensor) -> torch.Tensor:
    found = x[x[:, 0] > 0]
    return found.view(found.shape[0], 2, -1).transpose(1, 2).reshape(-1, 2).cumsum(0)


def masked(x: torch.Tensor) -> torch.Tensor:
    return torch.masked_select(x, x > 0).exp().sum() / 2


def counted(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    values, inverse, counts = x[:, 0].unique(return_inverse=True, return_counts=True)
    return values * counts, values[inverse]


def repeated(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave((x[:, 0] > 0).long() * 2 + 1, dim=0) * 2


def found_again(x: torch.Tensor) -> torch.Tensor:
    once = x[x[:, 0] > 0]
    return once[once[:, 1] > 0].softmax(-1)


@pytest.mark.parametrize(
    "function",
    [chosen, selected_by_rows, two_of_one_mask, sizes_in_results, masked, repeated],
    ids=lambda function: function.__name__,
)
def test_every_count_is_served_after_one_trace_and_one_for_none(function: Callable[..., Any]) -> None:
    jitted = called_with(function, [5, 3, 0, 12, 1, 2, 7, 0, 4, 11, 6, 1])
    assert jitted.counters.traces <= 2


@pytest.mark.parametrize("function", [written_back, reshaped])
def test_one_row_is_another_way_where_its_strides_are(function: Callable[..., Any]) -> None:
    assert called_with(function, [5, 3, 12, 1, 2, 7]).counters.traces == 2


@pytest.mark.parametrize(
    "function", [added_at_rows, new_tensors, counted, found_again], ids=lambda function: function.__name__
)
def test_several_counts_in_a_call_take_a_few_traces(function: Callable[..., Any]) -> None:
    jitted = called_with(function, [5, 3, 0, 12, 1, 2, 7, 0, 4, 11, 6, 1])
    traces = jitted.counters.traces
    assert traces <= 6
    with torch.no_grad():
        for count in (8, 9, 10):
            jitted(with_positives(count))
    assert jitted.counters.traces == traces


@pytest.mark.parametrize("first", [0, 1, 2, 12])
def test_it_does_not_matter_which_count_comes_first(first: int) -> None:
    jitted = called_with(selected_by_rows, [first, 7, 0, 1, 12, 3])
    assert jitted.counters.traces <= 3


def test_a_new_count_compiles_nothing() -> None:
    jitted = called_with(selected_by_rows, [5, 0])
    compiles = jitted.counters.compiles
    with torch.no_grad():
        for count in range(13):
            same(jitted(with_positives(count)), selected_by_rows(with_positives(count)))
    assert jitted.counters.compiles == compiles


def test_python_compares_counts() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        found = x[x[:, 0] > 0]
        if len(found) > 6:
            return found * 2
        if found.shape[0] in (2, 3):
            return found + 1
        return found.sum(0)

    jitted = called_with(f, [5, 0, 1, 4, 7, 9, 2, 3, 8, 12, 6, 11, 2, 3, 0])
    assert jitted.counters.traces <= 9


def test_counts_are_compared_with_each_other_and_with_sizes_of_inputs() -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        one, other = x[x[:, 0] > 0], y[y[:, 0] > 0]
        if len(one) == len(y):
            return one + 1
        return one.sum(0) if len(one) > len(other) else other.sum(0) - 1

    jitted = dsjit.jit(f)
    with torch.no_grad():
        for one, other in [(5, 3), (7, 2), (3, 9), (2, 4), (12, 5), (12, 4), (9, 8), (4, 12), (6, 6), (5, 5)]:
            x, y = with_positives(one), with_positives(other)
            same(jitted(x, y), f(x, y))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x[row] for row in range(len(x[x[:, 0] > 0]))],
        lambda x: [x + key for key in {len((x[:, 0] > 0).nonzero())}],
        lambda x: x * len(x[x[:, 0] > 0]) ** 0.5,
        lambda x: str(x[x[:, 0] > 0].shape),
    ],
)
def test_a_count_that_is_used_as_a_number_is_an_outcome(function: Callable[..., Any]) -> None:
    jitted = called_with(function, [5, 3, 5, 3, 0, 1, 0, 1])
    assert jitted.counters.traces == 4


def test_counts_and_sizes_of_inputs_are_open_together() -> None:
    jitted = dsjit.jit(selected_by_rows)
    with torch.no_grad():
        for rows, count in [(12, 5), (9, 3), (14, 8), (17, 11), (8, 2), (33, 21)]:
            x = with_positives(count, rows)
            same(jitted(x), selected_by_rows(x))
    behind = jitted_of(jitted)
    assert behind is not None
    assert behind.counters.traces == 2


class Routed(torch.nn.Module):
    """Each row goes to the expert of its largest score."""

    def __init__(self) -> None:
        super().__init__()
        self.router = torch.nn.Linear(4, 3)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        best = self.router(x).argmax(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            (rows,) = (best == number).nonzero(as_tuple=True)
            if len(rows) == 0:
                continue
            out.index_add_(0, rows, expert(x[rows]).relu())
        return out


def test_routed_experts_share_one_program_for_all_counts() -> None:
    torch.manual_seed(1)
    module = Routed()
    jitted = dsjit.jit(copy.deepcopy(module))
    behind = jitted_of(jitted)
    assert behind is not None
    with torch.no_grad():
        for _ in range(20):
            x = torch.randn(24, 4) + torch.randn(4)
            same(jitted(x), module(x))
    assert behind.counters.calls_eager == 0
    assert behind.counters.traces <= 7  # which experts are idle


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=2, max_size=5))
def test_any_masks_in_any_order(masks: list[list[bool]]) -> None:
    def f(x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = x[mask]
        if found.numel() == 0:
            return (x,)
        more = found[found[:, 1] > 0]
        return found.t() @ found, more[:, None] * 2, mask.nonzero() + len(more)

    x = with_positives(3, 6)
    jitted = dsjit.jit(f)
    for mask in map(torch.tensor, masks):
        same(jitted(x, mask), f(x, mask))
