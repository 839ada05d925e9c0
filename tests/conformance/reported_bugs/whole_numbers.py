"""Integers: width, overflow, division, shifts."""

from __future__ import annotations

import torch

from tests.conformance.harness import Play, program


@program(traces=2)
def negative_of_unsigned(play: Play) -> None:
    """pytorch/pytorch#93829: the negative of a uint8 was negative in the comparison that followed."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.neg(x)
        return y, torch.lt(y, torch.tensor(4, dtype=torch.uint8)), y // 2, y > 200

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(40, dtype=torch.uint8))
    for _ in range(2):
        play(f, torch.tensor(6, dtype=torch.uint8))


@program()
def negative_of_an_unsigned_constant_with_floats(play: Play) -> None:
    """pytorch/pytorch#161763: the negative of a uint8 constant, added to floats, was not taken modulo 256."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        c = torch.tensor(7, dtype=torch.uint8)
        return c + x, torch.neg(c), torch.neg(c) + x

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(4.0).view(2, 2))


@program()
def overflow_before_a_wider_type(play: Play) -> None:
    """pytorch/pytorch#105264: a uint8 sum that overflows was kept whole until its cast to int16."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x + x).to(torch.int16), (x * 3).to(torch.float32), (x - 200).to(torch.int64)

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(256, dtype=torch.int64).to(torch.uint8))


@program()
def overflow_between_two_operations(play: Play) -> None:
    """pytorch/pytorch#109105: int8 products and sums were not wrapped before they met a wider operand."""

    def run(x: torch.Tensor, y: torch.Tensor, wide: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return 6 * (x + y) + wide, 6 * x + 6 * y + wide, (x * y).float() / 2, (x * x).sum()

    f = play.jit(run)
    for _ in range(3):
        x, y = torch.arange(-128, 128, 3).to(torch.int8), torch.arange(127, -129, -3).to(torch.int8)
        play(f, x, y, torch.arange(len(x), dtype=torch.int32))


@program(traces=2)
def shift_by_the_width_or_more(play: Play) -> None:
    """pytorch/pytorch#143566: a left shift by 64 left an int64 as it was, where eager gives 0."""

    def run(x: torch.Tensor, by: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.bitwise_left_shift(x, by), torch.bitwise_right_shift(x, by), x << 65, x >> 70

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.tensor([1000, -1000, 1, -1]), torch.tensor([64, 63, 100, 64]))
    narrow = torch.tensor([1000, -1000, 1, -1], dtype=torch.int32)
    for _ in range(2):
        play(f, narrow, torch.tensor([32, 31, 33, 32], dtype=torch.int32))


@program()
def division_by_zero(play: Play) -> None:
    """pytorch/pytorch#178013: an integer floor division by zero gave a number where eager does not."""
    f = play.jit(lambda x, y: torch.floor_divide(x, y) + 1)
    for divisor in (2, 2, 0, 2):
        play(f, torch.arange(-4, 4), torch.tensor([1, 2, 3, divisor, 2, 1, 1, 1]))


@program()
def remainder_by_zero(play: Play) -> None:
    """jax-ml/jax#37819: integer division by zero returned whatever the hardware does."""
    f = play.jit(lambda x, y: (x % y) * 2)
    for divisor in (3, 3, 0, 3):
        play(f, torch.arange(-4, 4), torch.tensor([1, 2, 3, divisor, 2, 1, 1, 1]))


@program()
def rounding_of_negative_quotients(play: Play) -> None:
    """jax-ml/jax#37819: the signs of quotients and remainders, which hardware takes towards zero."""

    def run(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x // y, x % y, torch.fmod(x, y), torch.div(x, y, rounding_mode="trunc"), x / y, x // -3, x % -3

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(-20, 20), torch.tensor([7, -7, 3, -3]).repeat(10))


@program()
def product_wider_than_32_bits(play: Play) -> None:
    """pytorch/pytorch#183901: an int64 product of an `arange` and a constant was computed in 32 bits."""
    f = play.jit(lambda: torch.arange(0, 9, dtype=torch.int64) * torch.tensor([1_500_000_000], dtype=torch.int64))
    for _ in range(3):
        play(f)


@program()
def index_arithmetic_beyond_32_bits(play: Play) -> None:
    """pytorch/pytorch#183901: the same for sums, comparisons and casts of such products."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        wide = x * 1_500_000_000
        return wide.sum(), wide.to(torch.int32), wide > 2**31, (wide // 7).cumsum(0), wide.float()

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(19))


@program()
def matrix_product_of_bytes(play: Play) -> None:
    """pytorch/pytorch#191308: a batched product of int8 matrices came back as int64."""
    f = play.jit(torch.matmul)
    for _ in range(3):
        play(f, torch.full((1, 1, 2), 100, dtype=torch.int8), torch.full((1, 2, 2), 3, dtype=torch.int8))


@program()
def least_integer(play: Play) -> None:
    """pytorch/pytorch#184406: the least int32 divided by -1 killed the process, where eager goes on."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return -x, x.abs(), x * -1, x - 1, x.sign()

    f = play.jit(run)
    for dtype in (torch.int32, torch.int32):
        play(f, torch.tensor([-(2**31), 2**31 - 1, 0], dtype=dtype))
