"""Random numbers: the compiled call draws what eager draws, and leaves the generators as eager leaves them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


@program(exact=False)
def dropout_draws_the_same_masks(play: Play) -> None:
    net = play.jit(nn.Sequential(nn.Dropout(0.5), nn.Dropout1d(0.25), nn.AlphaDropout(0.5)))
    for _ in range(4):
        play(net, whole(3, 8))
    torch.manual_seed(7)
    play(net, whole(3, 8))
    torch.manual_seed(7)
    play(net, whole(3, 8))


@program(exact=False)
def every_distribution_draws_in_order(play: Play) -> None:
    def f(x: torch.Tensor) -> list[torch.Tensor]:
        return [
            torch.rand(3), torch.randn(2, 2, dtype=torch.float64), torch.randint(10, (4,)), torch.randperm(5),
            torch.rand_like(x), torch.bernoulli(x.sigmoid()), torch.empty(3).exponential_(), x.clone().uniform_(-1, 1),
            torch.multinomial(x.abs() + 1, 2), torch.normal(x, 0.5), torch.poisson(x.abs()),
            torch.empty(2).geometric_(0.5),
        ]  # fmt: skip

    jitted = play.jit(f)
    for _ in range(3):
        play(jitted, whole(5))


@program()
def a_number_that_nobody_uses_is_still_drawn(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        torch.rand(5)
        kept = torch.rand(3)
        kept.clone().normal_()
        return x + kept

    jitted = play.jit(f)
    for _ in range(3):
        play(jitted, whole(3))


@program()
def equal_draws_are_not_merged_or_moved(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        first, second = torch.rand(3), torch.rand(3)
        between = torch.randn(3)
        return (first - second) * x + torch.rand(3) * 0 + between.sign()

    jitted = play.jit(f)
    for _ in range(3):
        play(jitted, whole(3))


@program()
def seeds_are_set_inside_the_call(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        before = torch.rand(2)
        torch.manual_seed(5)
        inside = torch.rand(2)
        state = torch.get_rng_state()
        again = torch.rand(2)
        torch.set_rng_state(state)
        return before + x, inside, again - torch.rand(2)

    jitted = play.jit(f)
    for _ in range(3):
        play(jitted, whole(2))


@program(traces=2)
def a_generator_of_its_own_is_used(play: Play) -> None:
    generator = torch.Generator().manual_seed(3)
    f = play.jit(lambda x: x + torch.rand(3, generator=generator) + torch.rand(3))
    play.watch(generator=generator)
    for _ in range(3):
        play(f, whole(3))
    generator.manual_seed(3)
    play(f, whole(3))
    generator = torch.Generator().manual_seed(4)
    play.watch(generator=generator)
    play(f, whole(3))
    play(f, whole(3))


@program(traces=3)
def a_branch_on_a_drawn_number(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        if torch.rand(()) < 0.5:
            return x + torch.rand(3)
        return x - torch.randn(3)

    jitted = play.jit(f)
    for seed in (0, 1, 2, 3, 4, 5, 0, 1):
        torch.manual_seed(seed)
        play(jitted, whole(3))


@program(exact=False, traces=2)
def a_forked_state_is_restored_inside(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            noise = torch.randn(3)
        return x + noise + torch.randn(3)

    jitted = play.jit(f)
    for _ in range(4):
        play(jitted, whole(3))


@program(compiled=False)
def numbers_of_python_and_numpy_are_drawn(play: Play) -> None:
    own, other = random.Random(5), np.random.default_rng(5)

    def f(x: torch.Tensor) -> torch.Tensor:
        return x * random.random() + np.random.rand() + own.randint(0, 9) + float(other.integers(9))

    jitted = play.jit(f)
    for _ in range(4):
        play(jitted, whole(3))


@program(exact=False, traces=2)
def attention_with_dropout_and_functional_training(play: Play) -> None:
    def f(q: torch.Tensor, train: bool) -> tuple[torch.Tensor, ...]:
        return F.scaled_dot_product_attention(q, q, q, dropout_p=0.5 if train else 0.0), F.dropout(q, 0.5, train)

    jitted: Any = play.jit(f)
    for train in (True, True, False, False, True):
        play(jitted, whole(1, 2, 4, 8) / 8, train)
