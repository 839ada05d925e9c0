"""Sizes that Python computes with before torch sees them: halves, remainders, blocks, limits. Lengths vary."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole

LENGTHS = (4, 6, 9, 12, 5, 16, 7)


def play_lengths(play: Play, function: object, *rest: int) -> None:
    for length in LENGTHS:
        play(function, whole(length, *rest))


@program(traces=2)
def a_tensor_is_cut_into_halves(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = x.shape[0] // 2
        return x[:half] + 1, x[half:] * 2

    play_lengths(play, play.jit(f), 2)


@program(traces=2)
def rows_are_padded_to_a_multiple(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        missing = -x.shape[0] % 8
        return F.pad(x + 1, (0, 0, 0, missing)) * 2

    play_lengths(play, play.jit(f), 2)


@program(traces=3)
def rows_are_padded_if_they_must(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        if n % 4 != 0:
            x = F.pad(x, (0, 0, 0, 4 - n % 4))
        return x.view(-1, 4, x.shape[1]).sum(1)

    play_lengths(play, play.jit(f), 2)


@program(traces=7)
def blocks_and_a_rest(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        blocks, rest = divmod(x.shape[0], 3)
        return x[: blocks * 3].view(blocks, 3, -1).sum(1), x[x.shape[0] - rest :] + 1

    jitted = play.jit(f)
    play_lengths(play, jitted, 2)
    play_lengths(play, jitted, 2)


@program(traces=3)
def a_limit_bounds_a_length(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        length = min(x.shape[0], 8)
        return x[:length] + torch.arange(max(length, 4))[:length, None]

    play_lengths(play, play.jit(f), 2)


@program(traces=4)
def the_longer_of_two_lengths(play: Play) -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(max(x.shape[0], y.shape[0]))
        out[: x.shape[0]] += x
        out[: y.shape[0]] += y
        return out

    jitted = play.jit(f)
    for a, b in ((3, 5), (5, 3), (4, 7), (8, 2), (6, 9), (9, 4)):
        play(jitted, whole(a), whole(b))


@program(traces=2)
def scales_come_from_sizes(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        n, width = x.shape
        return x / n + x * (1.0 / width) + x.sum(0) * (n - 1) / math.sqrt(n * n)

    play_lengths(play, play.jit(f), 4)


@program(traces=2)
def a_part_is_kept_by_a_ratio(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        kept = math.ceil(x.shape[0] * 0.5)
        return x.topk(kept, dim=0).values + int(x.shape[0] / 2)

    play_lengths(play, play.jit(f), 2)


@program(traces=2)
def positions_relative_to_each_other(play: Play) -> None:
    table = whole(33)

    def f(x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        place = torch.arange(n)[:, None] - torch.arange(n)[None, :]
        return table[(place + n - 1).clamp(0, 32)] + x.sum(1)

    play_lengths(play, play.jit(f), 2)


@program(traces=8)
def a_mask_is_kept_for_each_length(play: Play) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.masks: dict[int, torch.Tensor] = {}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n = x.shape[0]
            if n not in self.masks:
                self.masks[n] = torch.ones(n, n).tril()
            return self.masks[n] @ x

    net = play.jit(Net())
    for length in (3, 4, 5, 3, 4, 5, 6, 3, 4, 5, 6):
        play(net, whole(length, 2))


@program(traces=4)
def a_table_of_positions_grows_when_it_must(play: Play) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.longest = 4
            self.register_buffer("table", torch.arange(4) * 2, persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n = x.shape[0]
            if n > self.longest:
                self.longest = n
                self.register_buffer("table", torch.arange(n) * 2, persistent=False)
            return x + self.table[:n, None]

    f = play.jit(Positions())
    for length in (3, 4, 8, 5, 6, 3, 8):
        play(f, whole(length, 2))


@program(traces=2)
def chunks_of_a_fixed_length(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(2)
        for start in range(0, x.shape[0], 4):
            total = total + x[start : start + 4].sum(0)
        return total

    jitted = play.jit(f)
    for length in (8, 8, 12, 12, 8):
        play(jitted, whole(length, 2))


@program(traces=None)
def shifts_powers_and_roots_of_a_size(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        return x * (n << 1) + (n >> 1) + (n**2 - n ^ 1) + abs(-n) + round(n / 4)

    play_lengths(play, play.jit(f), 2)


@program(traces=2)
def numpy_computes_with_sizes(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        steps = np.linspace(0, x.shape[0] - 1, num=3).astype(np.int64)
        return x[torch.from_numpy(steps)] * float(np.sqrt(16))

    jitted = play.jit(f)
    for length in (4, 6, 4, 6):
        play(jitted, whole(length, 2))
