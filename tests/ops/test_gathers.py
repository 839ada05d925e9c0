"""Ops that pick elements: which operand's dimension tells the place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dsjit.ops.gathers import Gather, gather_of
from tests.graphs import trace

X = torch.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)
LINE, PAIR = torch.tensor([1, 0, 1]), torch.tensor([[2], [0]])


def picked(function: Callable[..., Any], *args: torch.Tensor) -> Gather | None:
    """Of the only op that the function calls."""
    (node,) = trace(function, *args).nodes
    return gather_of(node)


@pytest.mark.parametrize(
    ("function", "args", "places", "indices", "wraps"),
    [
        (lambda x, i: x[i], (X, LINE), (-1, 1, 2, 3), [(0, 1)], True),
        (lambda x, i: x[:, :, i], (X, LINE), (0, 1, -1, 3), [(2, 1)], True),
        (lambda x, i, j: x[:, i, j], (X, LINE, PAIR), (0, -1, -2, 3), [(1, 2), (1, 2)], True),
        (lambda x, i, j: x[i, :, j], (X, LINE, PAIR), (-1, 2, -2, 3), [(0, 2), (0, 2)], True),
        (lambda x, i: x.index_select(-2, i), (X, LINE), (0, 1, -1, 3), [(2, 1)], False),
        (lambda x, i: torch.nn.functional.embedding(i, x[0, 0]), (X, PAIR), (-1, 2), [(0, 2)], False),
        (lambda x, i: x.gather(3, i), (X, torch.zeros(1, 2, 3, 4, dtype=torch.int64)), (0, 1, 2, -1), [(0, 4)], False),
    ],
    ids=["rows", "a dimension within", "neighbours", "apart", "index_select", "embedding", "gather"],
)
def test_places(
    function: Callable[..., Any],
    args: tuple[torch.Tensor, ...],
    places: tuple[int, ...],
    indices: list[tuple[int, int]],
    wraps: bool,
) -> None:
    nodes = trace(function, *args).nodes
    (found,) = [gather for node in nodes if (gather := gather_of(node)) is not None]
    assert (found.places, found.wraps) == (places, wraps)
    assert [(index.first, index.rank) for index in found.indices] == indices


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (lambda x, m: x[m], (X, X > 3)),
        (lambda x, i: x.gather(0, i), (torch.tensor(1.0), torch.tensor(0))),
        (lambda x, i: x.index_select(0, i), (torch.tensor(1.0), torch.tensor([0]))),
        (lambda x, i: x + i, (X, X)),
    ],
    ids=["a mask", "gather of no dimensions", "index_select of no dimensions", "another op"],
)
def test_what_is_none(function: Callable[..., Any], args: tuple[torch.Tensor, ...]) -> None:
    assert picked(function, *args) is None
