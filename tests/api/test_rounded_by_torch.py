"""Code of torch's own that rounds, clamps or leaves out an op by sizes: results have eager's shapes at every size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import dsjit

Tensors = list[torch.Tensor]


def padded_to_blocks(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x, (0, 0, 0, -x.shape[0] % 3)).view(-1, 3, x.shape[1])


def pairs(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (-1, 2)) if x.shape[1] % 2 == 0 else x


def first_columns_are_cleared(x: torch.Tensor) -> Tensors:
    y = x * 1
    y[:, :12] = 0
    return [y]


POSITIONS = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))

CASES: dict[str, tuple[Callable[[torch.Tensor], Tensors], list[tuple[int, ...]]]] = {
    "all columns, then the first of more": (lambda x: [x[:, :12] * 2], [(2, 5), (2, 7), (2, 30), (2, 12), (2, 13)]),
    "all rows, then the first of more": (lambda x: [x[:7, -5:] * 2], [(7, 6), (3, 6), (2, 6), (41, 6), (50, 6)]),
    "behind an ellipsis, and a new dimension": (
        lambda x: [x[..., :12] * 2, x[None, :9, 2:] * 2],
        [(2, 5), (3, 7), (20, 30), (21, 40), (8, 12), (2, 6)],
    ),
    "all of a table, then less": (lambda x: [POSITIONS[: x.shape[0]] * 2], [(30,), (40,), (5,), (16,), (17,)]),
    "a write to all columns, then to the first of more": (first_columns_are_cleared, [(2, 5), (2, 7), (2, 30), (2, 9)]),
    "one window, then more": (lambda x: [x.unfold(0, 1, 16) * 2], [(4, 3), (6, 3), (53, 3), (16, 3), (17, 3)]),
    "a diagonal along one side, then the other": (
        lambda x: [x.diagonal(1) * 2],
        [(6, 58), (9, 64), (29, 62), (59, 37), (12, 62), (20, 68), (26, 27), (42, 62), (66, 20)],
    ),
    "a triangle of a wide matrix, then of a tall one": (
        lambda x: [torch.tril_indices(x.shape[0], x.shape[1]), pairs(x) * 2],
        [(18, 47), (51, 3), (68, 49), (5, 45), (66, 7), (44, 63)],
    ),
    "halves": (lambda x: [part * 2 for part in x.chunk(2)], [(4, 3), (6, 3), (7, 3), (9, 3), (50, 3), (11, 3)]),
    "halves beside eighths": (
        lambda x: [x[2::8] * 2, *[part * 2 for part in x.tensor_split(2)]],
        [(17, 17), (19, 19), (66, 66), (5, 5)],
    ),
    "thirds beside blocks of 3": (
        lambda x: [*[part * 2 for part in x.tensor_split(3, 1)], padded_to_blocks(x) * 2, pairs(x) * 2],
        [(6, 6), (7, 7), (62, 62), (32, 32), (40, 40), (41, 41)],
    ),
    "thirds beside fifths": (
        lambda x: [x[: x.shape[0] // 5] * 2, *[part * 2 for part in x.chunk(3, 1)], x[:, x.shape[1] // 3 :] * 2],
        [(100, 100), (102, 102), (22, 22), (35, 35), (42, 42), (40, 40)],
    ),
    "every other column": (lambda x: [x[:, ::2] * 2], [(4, 5), (6, 7), (6, 8), (9, 2), (30, 3), (5, 40)]),
    "every eighth row, from the third on": (lambda x: [x[2::8] * 2], [(n, 3) for n in (20, 22, 9, 66, 17, 40, 3)]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("calls", [slice(None), slice(None, None, -1)], ids=["in this order", "in the opposite one"])
def test_results_have_the_shapes_of_eager(name, calls):
    function, shapes = CASES[name]
    jitted = dsjit.jit(function)
    for shape in shapes[calls]:
        x = torch.randn(shape)
        for found, expected in zip(jitted(x), function(x), strict=True):
            assert (found.shape, found.stride()) == (expected.shape, expected.stride())
            assert torch.equal(found, expected)
