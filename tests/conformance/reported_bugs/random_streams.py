"""Random numbers: eager's stream, in eager's order, and the generator left as eager leaves it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.conformance.harness import Play, program


@program()
def two_dropouts_in_separate_branches(play: Play) -> None:
    """pytorch/pytorch#192635: independent dropouts were reordered, and drew each other's masks."""

    def run(encoder: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
        large = F.dropout(encoder * 2, 0.5, training=True).sum(0)
        small = F.dropout(decoder + 1, 0.25, training=True)
        return large[:4] + small

    f = play.jit(run)
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        play(f, torch.ones(40, 30), torch.ones(4))


@program()
def same_seed_same_numbers(play: Play) -> None:
    """pytorch/pytorch#118735: after the same `manual_seed`, compiled code drew other numbers than eager."""
    f = play.jit(lambda x: (x + torch.rand(5), torch.randn(3), torch.randint(0, 9, (4,)), torch.randperm(6)))
    for seed in (5, 5, 6, 5):
        torch.manual_seed(seed)
        play(f, torch.zeros(5))


@program()
def random_choice_by_sorting(play: Play) -> None:
    """pytorch/pytorch#143431: indices from an `argsort` of random numbers differed from eager's."""

    def run(latent: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(2, 12)
        indices = torch.argsort(torch.rand(*noise.shape), dim=-1)[:, :6]
        return latent[torch.arange(2).unsqueeze(-1), indices][:, :3]

    f = play.jit(run)
    for seed in (54321, 54321, 1):
        torch.manual_seed(seed)
        play(f, torch.arange(96.0).view(2, 12, 4))


@program()
def bernoulli_masks(play: Play) -> None:
    """pytorch/pytorch#188074 (comment): `bernoulli` was made from `rand`, which draws in another order."""
    f = play.jit(lambda x: (torch.bernoulli(x), x.clone().bernoulli_(0.25), torch.bernoulli(x, 0.75) + 1))
    for seed in (42, 42, 7):
        torch.manual_seed(seed)
        play(f, torch.full((3, 11), 0.5))


@program()
def new_numbers_in_each_call(play: Play) -> None:
    """tinygrad/tinygrad#6868: random numbers inside were wrong when some had been drawn, and not used, before."""
    torch.rand(1)
    f = play.jit(lambda: torch.rand(3) * 2)
    for _ in range(4):
        play(f)


@program(traces=2)
def dtype_of_random_numbers(play: Play) -> None:
    """pytorch/pytorch#138015: `randn` with a dtype gave another one after the default dtype had been set."""
    f = play.jit(lambda: (torch.randn(2, dtype=torch.bfloat16), torch.rand(2), torch.randn(2, dtype=torch.float64)))
    for dtype in (torch.float32, torch.float32, torch.bfloat16, torch.bfloat16):
        torch.set_default_dtype(dtype)
        play(f)


@program()
def dtype_of_normal_numbers(play: Play) -> None:
    """pytorch/pytorch#112449: `torch.normal` ignored its dtype."""
    f = play.jit(lambda: (torch.normal(2.0, 3.0, (4, 4), dtype=torch.float64), torch.normal(0.0, 1.0, (2,))))
    for _ in range(3):
        play(f)


@program(traces=3)
def dropout_of_whole_channels(play: Play) -> None:
    """pytorch/pytorch#142853: dropouts of whole channels differed from eager, even with eager's generator."""
    layers = [nn.Dropout1d(0.5), nn.Dropout2d(0.5), nn.Dropout3d(0.5)]
    for dims, layer in enumerate(layers, 1):
        f = play.jit(layer)
        for _ in range(2):
            torch.manual_seed(0)
            play(f, torch.ones(2, 3, *[4] * dims))


@program(traces=2)
def dropout_switched_off(play: Play) -> None:
    """pytorch/pytorch#158643: beside in-place ops, dropout differed in its mask and in the generator's state."""
    model = nn.Sequential(nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Dropout(0.25, inplace=True))
    f = play.jit(model)
    for training in (True, True, False, True, False):
        model.train(training)
        play(f, torch.arange(-20.0, 20.0))


@program(traces=2)
def generator_of_its_own(play: Play) -> None:
    """pytorch/pytorch#118735: the same with a generator that the caller owns and seeds."""
    generator = torch.Generator()
    play.watch(generator=generator)
    f = play.jit(lambda x: x + torch.rand(3, generator=generator))
    for seed in (3, 3, 4):
        generator.manual_seed(seed)
        play(f, torch.zeros(3))
        play(f, torch.ones(3))


@program()
def generator_seeded_inside(play: Play) -> None:
    """pytorch/pytorch#142853: the same where the function seeds torch's generator itself."""

    def run(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(11)
        return F.dropout(x, 0.5, training=True) + torch.rand(4)

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.ones(4))
        torch.rand(2)
