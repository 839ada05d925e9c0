"""Sizes that change between calls: equal at every size; a new size costs one more compile, and then none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole

WIDTHS = (3, 5, 7, 11, 2, 13, 6, 9, 17, 4, 8, 12)


@program(traces=2)
def the_length_of_a_vector_changes(play: Play) -> None:
    f = play.jit(lambda x: (x * 2 + 1).relu())
    for width in WIDTHS:
        play(f, whole(width))


@program(traces=2)
def batch_and_length_change_together(play: Play) -> None:
    weight = whole(4, 4)
    f = play.jit(lambda x: (x @ weight).sum(1) + x.shape[0])
    for number, width in enumerate(WIDTHS):
        play(f, whole(2 + number % 3, width, 4))


@program(traces=5)
def zero_and_one_are_sizes_too(play: Play) -> None:
    f = play.jit(lambda x, y: (x + y, x.sum(0), torch.cat([x, y[:1]])))
    for width in (4, 1, 0, 5, 1, 0, 6, 7):
        play(f, whole(width, 2), whole(1, 2))


@program(traces=2)
def a_size_is_used_as_a_number(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, int, str]:
        n = x.shape[0]
        return x / n + torch.arange(n) * (n // 2), n * n, f"{n} rows"

    jitted = play.jit(f)
    for width in WIDTHS:
        play(jitted, whole(width))


@program(traces=4)
def a_branch_on_a_size(play: Play) -> None:
    f = play.jit(lambda x: x * 2 if len(x) > 6 else x - 1)
    for width in WIDTHS:
        play(f, whole(width))


@program(traces=4)
def a_loop_over_a_size(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(2)
        for row in x:
            total = total * 2 + row
        return total

    jitted = play.jit(f)
    for width in (2, 3, 2, 4, 3, 5, 4):
        play(jitted, whole(width, 2))


@program(traces=4)
def views_are_made_of_changing_sizes(play: Play) -> None:
    def f(x: torch.Tensor) -> list[torch.Tensor]:
        batch, length, width = x.shape
        heads = x.view(batch, length, 2, width // 2).transpose(1, 2)
        return [heads, heads.reshape(batch * 2, length, -1), x[:, -1], x[:, ::2], x.flatten(1) + 1, x[:, : length - 1]]

    jitted = play.jit(f)
    for length in WIDTHS:
        play(jitted, whole(2, length, 4))


@program(traces=3)
def equal_sizes_become_different(play: Play) -> None:
    f = play.jit(lambda x, y: x.sum() + y.sum() if x.shape == y.shape else x.sum() - y.sum())
    for left, right in ((3, 3), (5, 5), (3, 4), (6, 2), (7, 7), (8, 9)):
        play(f, whole(left), whole(right))


@program(traces=2)
def a_mask_made_for_each_length(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        length = x.shape[-1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        return (x[:, None, :] * mask).sum(-1)

    jitted = play.jit(f)
    for width in WIDTHS:
        play(jitted, whole(2, width))


@program(traces=2, exact=False)
def a_small_model_meets_many_lengths(play: Play) -> None:
    net = nn.Sequential(nn.Embedding(16, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    jitted = play.jit(net.eval())
    for width in WIDTHS:
        play(jitted, torch.arange(2 * width).remainder(16).view(2, width))


@program(traces=6)
def the_option_dynamic_changes_no_answer(play: Play) -> None:
    jitted: list[Any] = [play.jit(lambda x: x.cumsum(0) * len(x), dynamic=dynamic) for dynamic in (True, False)]
    for width in (3, 5, 7, 5, 3):
        for f in jitted:
            play(f, whole(width))


@program(traces=2)
def a_captured_tensor_grows(play: Play) -> None:
    held = SimpleNamespace(w=whole(2))
    f = play.jit(lambda x: (held.w * 2).sum() + x)
    for width in WIDTHS:
        held.w = whole(width)
        play(f, whole(3))
