"""Floating point: rounding at each op, NaN, infinities, the sign of zero."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from tests.conformance.harness import Play, program

NAN, INF = math.nan, math.inf


@program(traces=2)
def nan_in_minimum_and_maximum(play: Play) -> None:
    """pytorch/pytorch#93784: `clamp` and `maximum` did not propagate NaN, or from one operand only."""

    def run(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            torch.maximum(x, y), torch.minimum(x, y), torch.fmax(x, y), torch.fmin(x, y), x.clamp_min(0.5),
            x.clamp(-1, 1), torch.clamp(x, min=y), F.relu(x), x.max(), x.min(), x.amax(0), *x.aminmax(),
        )  # fmt: skip

    f = play.jit(run)
    for dtype in (torch.float32, torch.float32, torch.float16, torch.float16):
        x, y = torch.arange(-3.0, 4.0).repeat(5), torch.zeros(35)
        x[1] = x[-1] = y[2] = NAN
        play(f, x.to(dtype), y.to(dtype))


@program()
def clamp_of_integers_to_floats(play: Play) -> None:
    """pytorch/pytorch#93784: `clamp_min` of integers to a float did not promote them."""
    f = play.jit(lambda x: (x.clamp_min(0.5), x.clamp(0, 2), torch.maximum(x, torch.tensor(0.5))))
    for _ in range(3):
        play(f, torch.arange(-2, 4))


@program()
def nan_in_argmax(play: Play) -> None:
    """pytorch/pytorch#118266: `argmax` and `argmin` skipped NaN, which is the extreme for eager."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.argmax(), x.argmin(), x.argmax(1), x.argmin(0), *x.max(1), *x.min(0), *x.sort(stable=True, dim=1)

    f = play.jit(run)
    for column in (0, 5, 16, 36):
        x = torch.arange(111.0).remainder(17).view(3, 37)
        x[1, column] = x[2, 3] = NAN
        play(f, x)


@program()
def negative_zero_plus_zero(play: Play) -> None:
    """pytorch/pytorch#189799: adding 0 to -0.0 was dropped, so that the reciprocal had the wrong sign."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        v = torch.ceil(x)
        return v, torch.reciprocal(v + torch.zeros_like(v)), 1 / (v + 0), 1 / (v - 0), 1 / (0 - v), 1 / (v * 1), -v

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.tensor([-0.5, -0.1, -0.9, 0.0]))


@program(traces=4)
def minimum_of_signed_zeros(play: Play) -> None:
    """pytorch/pytorch#194347: of zeros of two signs, `minimum` chose another than eager.

    Eager's choice depends on the operands' order, and differs in the last elements that fill no vector: there are none.
    """

    def run(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.minimum(x, y), torch.maximum(x, y), torch.minimum(y, x), torch.maximum(y, x)

    f = play.jit(run)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for _ in range(2):
            x, y = torch.tensor([-0.0, 0.0, -0.0, 1.0]).repeat(64), torch.tensor([0.0, -0.0, -0.0, -0.0]).repeat(64)
            play(f, x.to(dtype), y.to(dtype))


@program()
def fraction_of_negative_zero(play: Play) -> None:
    """pytorch/pytorch#183606: `frac(-0.0)` was -0.0 where eager gives 0.0."""
    f = play.jit(lambda x: (torch.frac(x), 1.0 / torch.frac(x), x.trunc(), x.round(), x.floor(), x.sign(), x.relu()))
    for _ in range(3):
        play(f, torch.tensor([-0.0, 0.0, -1.0, 1.0, -0.25, 2.5, -2.5] * 5))


@program(exact=False)
def sign_of_a_vanishing_result(play: Play) -> None:
    """pytorch/pytorch#187336: `log_ndtr` of a large number lost the sign of its zero."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        one = torch.ones_like(x)
        return torch.copysign(one, torch.special.log_ndtr(x)), torch.copysign(one, torch.expm1(-0.0 * x)), x * -0.0

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.tensor([100.0, 1.0, 1e-30]))


@program(traces=2)
def sign_bit_of_zeros(play: Play) -> None:
    """pytorch/pytorch#187935: `signbit` of a double -0.0 was false."""
    f = play.jit(lambda x: (torch.signbit(x), torch.copysign(torch.ones_like(x), x), torch.atan2(x, x.abs() - 1) < 0))
    for dtype in (torch.float64, torch.float64, torch.float32, torch.float32):
        play(f, torch.tensor([[1.0, -0.0, 0.0], [-1.0, -0.0, 2.5]], dtype=dtype))


@program()
def rounding_to_bfloat16_and_back(play: Play) -> None:
    """pytorch/pytorch#176565: a cast to bfloat16 and back was dropped as if it changed nothing."""
    f = play.jit(lambda x: (x.to(torch.bfloat16).to(torch.float32), x.half().float(), x.double().float()))
    for _ in range(3):
        play(f, torch.randn(4, 37))


@program()
def rounding_between_a_product_and_a_sum(play: Play) -> None:
    """pytorch/pytorch#181568: a cast to bfloat16 between a matrix product and a float32 addition was dropped."""
    f = play.jit(lambda x, w, b: (x @ w).to(torch.bfloat16) + b)
    for _ in range(3):
        x, w = torch.randint(-9, 9, (2, 15, 32)).float(), torch.randint(-9, 9, (32, 17)).float()
        play(f, x, w, torch.randn(17))


@program(traces=3)
def rotary_embedding_in_half_precision(play: Play) -> None:
    """pytorch/pytorch#182225: a rotary embedding in bfloat16 was rounded once at its end, not at each op."""

    def rotate(x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        return torch.cat((-x[..., half:], x[..., :half]), dim=-1)

    def run(q: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return q * cos.unsqueeze(1) + rotate(q) * sin.unsqueeze(1)

    f = play.jit(run)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for _ in range(2):
            q, cos, sin = torch.randn(1, 2, 7, 16), torch.randn(1, 7, 16), torch.randn(1, 7, 16)
            play(f, q.to(dtype), cos.to(dtype), sin.to(dtype))


@program()
def selected_half_added_to_single(play: Play) -> None:
    """pytorch/pytorch#183761: a float16 value from `where`, cast to float32, had digits that float16 lacks."""

    def run(x: torch.Tensor) -> torch.Tensor:
        y = x * 3
        return torch.where(y > 0, y, torch.full_like(y, 0.1)).to(torch.float32) + 1 / 3

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.randn(67).half())


@program(traces=2)
def error_term_of_a_low_precision_sum(play: Play) -> None:
    """jax-ml/jax#23007: the rounding error of a bfloat16 sum, `y - ((x + y) - x)`, was always 0."""

    def run(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y - ((x + y) - x)

    f = play.jit(run)
    for dtype in (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32):
        play(f, torch.randn(37).to(dtype), (torch.randn(37) / 100).to(dtype))


@program()
def products_that_cancel(play: Play) -> None:
    """openxla/xla#41579 (seen in JAX): `a*x + b*x` with `b == -a` became a fused multiply-add, and not 0."""
    f = play.jit(lambda a, b, x: (a * x + b * x, a * x - a * x, torch.addcmul(b * x, a, x), a * b - a * b + x))
    for _ in range(3):
        a = torch.full((37,), 1e14) + torch.randn(37) * 1e13
        play(f, a, -a, torch.full((37,), 1e10) + torch.randn(37) * 1e9)


@program()
def masked_scores(play: Play) -> None:
    """jax-ml/jax#6566: `x + -0.0 - max` was rearranged, and small scores vanished beside a large constant."""

    def run(mask: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores + -1.0 * 1e30 * (1.0 - mask)
        return scores - scores.max()

    f = play.jit(run)
    for value in (1.0, 1.0, 0.0):
        play(f, torch.tensor(value), torch.tensor([0.75, 0.5]))


@program()
def nan_times_zero(play: Play) -> None:
    """jax-ml/jax#4780: `loss + 0 * nan` was the loss, if certain other results were returned beside it."""

    def run(values: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        first, second = values.mean(), torch.where(mask, NAN, values).mean()
        return {"first": first, "second": second, "total": first + second * 0.0}

    f = play.jit(run)
    for masked in (True, True, False):
        play(f, torch.tensor([1.0, 1.0]), torch.tensor([False, masked]))


@program(traces=2)
def function_of_a_constant_nan(play: Play) -> None:
    """jax-ml/jax#29537: `exp(x * nan)` was a tiny number."""
    f = play.jit(lambda x: (torch.exp(x * NAN), torch.tanh(x + NAN), (x * NAN) > 0, torch.log(x - INF), x * INF))
    for dtype in (torch.float64, torch.float64, torch.float32, torch.float32):
        play(f, torch.tensor([0.123, 0.0, -2.0], dtype=dtype))


@program(traces=2)
def floor_division_below_a_whole_number(play: Play) -> None:
    """pytorch/pytorch#197895: `1.0 // 0.1` was 10 where eager and Python give 9."""

    def run(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return a // b, torch.div(a, b, rounding_mode="floor"), torch.div(a, b, rounding_mode="trunc"), a % b, a // 0.1

    f = play.jit(run)
    a, b = [1.0, 0.5, 6.0, 1.0, -1.0, 1.0, -6.0, 5.0, 0.0], [0.1, 0.1, 0.2, 1 / 3, 0.1, -0.1, INF, -INF, 2.0]
    for dtype in (torch.float32, torch.float32, torch.float64, torch.float64):
        play(f, torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype))


@program()
def floor_division_by_zero(play: Play) -> None:
    """jax-ml/jax#37752: a floor division by 0.0 gave NaN instead of an infinity."""
    f = play.jit(lambda x, y: (x // y, x % y, torch.fmod(x, y), x / y))
    for _ in range(3):
        play(f, torch.tensor([1.0, -1.0, 0.0, INF, NAN]), torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0]))


@program(exact=False)
def layer_norm_of_huge_numbers(play: Play) -> None:
    """pytorch/pytorch#173793: a layer norm of numbers near the largest float gave NaN where eager does not."""
    f = play.jit(lambda x: F.layer_norm(x, (64,)))
    for scale in (1.0, 1.0, 8.5e37):
        play(f, torch.full((2, 64), scale) * (1 + torch.arange(64.0) / 2**20))


@program(exact=False)
def cumulative_sum_of_infinities(play: Play) -> None:
    """pytorch/pytorch#132107: a cumulative sum of infinities had NaN in it."""
    f = play.jit(lambda x: (torch.cumsum(x, -1), torch.cumsum(x, -1).sum(), x.sum(), (x * 2).cumsum(0)))
    for value in (1.0, INF, INF):
        play(f, torch.full((513,), value, dtype=torch.float64))


@program(traces=2)
def statistics_of_nothing(play: Play) -> None:
    """pytorch/pytorch#197108: the mean from `var_mean` of an empty tensor was 0 where eager gives NaN."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.mean(), x.sum(), x.prod(), x.all(), x.any()

    f = play.jit(run)
    for shape in ((0,), (0,), (3, 0), (3, 0)):
        play(f, torch.ones(shape))


@program()
def complex_sum_with_broadcasting(play: Play) -> None:
    """pytorch/pytorch#174891: a complex sum with a broadcast operand had 1 in its imaginary part."""
    f = play.jit(lambda x: x + torch.ones(2, 1, dtype=torch.complex64))
    for _ in range(3):
        play(f, torch.full((2, 2), 1.0, dtype=torch.complex64))


@program()
def conjugates(play: Play) -> None:
    """pytorch/pytorch#148950: sums with a lazily conjugated tensor failed."""
    f = play.jit(lambda x: (x + torch.conj(x), x.conj().imag + 1, torch.view_as_real(x * 2).neg()))
    for _ in range(3):
        play(f, torch.complex(torch.arange(4.0), torch.arange(4.0) - 2))
