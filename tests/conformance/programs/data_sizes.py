"""Sizes that depend on data: another count of rows on each call, none and one among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole

COUNTS = (5, 3, 0, 8, 1, 2, 7, 4, 6, 0, 1, 5)


def marked(count: int) -> torch.Tensor:
    """A mask of 8, with `count` marks."""
    mask = torch.zeros(8, dtype=torch.bool)
    mask[torch.arange(count) * 3 % 8] = True
    return mask


@program(traces=2)
def rows_are_chosen_by_a_mask(play: Play) -> None:
    f = play.jit(lambda x, mask: x[mask] * 2 + 1)
    for count in COUNTS:
        play(f, whole(8, 4), marked(count))


@program(traces=3)
def rows_are_replaced_by_a_mask(play: Play) -> None:
    def clip(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out = x * 2
        out[mask] = x[mask] - 1
        return out

    f = play.jit(clip)
    for count in COUNTS:
        play(f, whole(8, 4), marked(count))


@program(traces=3)
def an_empty_choice_returns_early(play: Play) -> None:
    def positive(x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, int]:
        (rows,) = mask.nonzero(as_tuple=True)
        if len(rows) == 0:
            return x, 0
        return x[rows] + rows[:, None], len(rows)

    f = play.jit(positive)
    for count in COUNTS:
        play(f, whole(8, 4), marked(count))


@program(traces=None)
def a_count_decides_what_is_computed(play: Play) -> None:
    def reduce(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = x[mask]
        if found.shape[0] > 4:
            return found * 2
        return found + 1 if found.numel() else x

    f = play.jit(reduce)
    for count in COUNTS:
        play(f, whole(8, 4), marked(count))


@program(traces=None)
def a_count_is_used_as_a_number(play: Play) -> None:
    f = play.jit(lambda x, mask: [x[row] * 2 for row in range(len(mask.nonzero()))])
    for count in (3, 1, 3, 1):
        play(f, whole(8, 4), marked(count))


@program(traces=3)
def equal_values_are_counted(play: Play) -> None:
    def histogram(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, counts = x.unique(return_counts=True)
        return values * 2, counts + 1

    f = play.jit(histogram)
    for period in (3, 5, 2, 7, 1, 8):
        play(f, whole(8) % period)


@program(traces=5)
def experts_take_the_rows_that_are_routed_to_them(play: Play) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scales = nn.ParameterList(nn.Parameter(torch.full((4,), float(n + 1))) for n in range(3))

        def forward(self, x: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
            out = torch.zeros_like(x)
            for number, scale in enumerate(self.scales):
                (rows,) = (choice == number).nonzero(as_tuple=True)
                if len(rows) == 0:
                    continue
                out.index_add_(0, rows, x[rows] * scale + 1)
            return out

    experts = Experts()
    f = play.jit(experts)
    for count in (5, 4, 3, 6, 2):
        choice = torch.arange(8) // 2 % 3
        choice[:count] = count % 3
        play(f, whole(8, 4), choice)


@program(traces=3)
def counts_change_with_the_sizes_of_inputs(play: Play) -> None:
    f: Any = play.jit(lambda x, mask: x[mask].sum(1) * 2)
    for rows, count in ((8, 3), (9, 5), (12, 4), (17, 7), (8, 2)):
        play(f, whole(rows, 4), torch.arange(rows) < count)
