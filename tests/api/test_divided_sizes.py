"""Sizes that Python divides and rounds stay open: halves, blocks with a rest, padding to a multiple, steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import dsjit
from dsjit.api.entry import jitted_of

LENGTHS = (6, 9, 4, 12, 5, 16, 7, 8, 30, 2, 3, 65, 33)


def padded(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x + 1, (0, 0, 0, -x.shape[0] % 8)) * 2


def in_blocks(x: torch.Tensor) -> torch.Tensor:
    missing = -x.shape[0] % 4
    return F.pad(x, (0, 0, 0, missing)).view(-1, 4, x.shape[1]).sum(1) + missing


def windows(x: torch.Tensor) -> torch.Tensor:
    count, rest = divmod(x.shape[0], 3)
    return x[: x.shape[0] - rest].view(count, 3, 4).flip(1) * 2


def rotated(x: torch.Tensor) -> torch.Tensor:
    middle = x.shape[0] >> 1
    return torch.cat([-x[middle:], x[:middle]]) * x


def quarters(x: torch.Tensor) -> torch.Tensor:
    n = x.shape[0]
    return x[: (n // 2) // 2] + n // 4 if n >= 8 else x


FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "halves": (lambda x: (x[: x.shape[0] // 2] + 1, x[x.shape[0] // 2 :] * 2), 4),
    "padded": (padded, 2),
    "in blocks": (in_blocks, 6),
    "windows": (windows, 7),
    "rotated": (rotated, 4),
    "every other row": (lambda x: x[::2] * 2, 3),
    "every third row": (lambda x: x[1::3] * 2, 6),
    "quarters of larger ones": (quarters, 8),
    "a remainder": (lambda x: x * (x.shape[0] % 3), 3),
}
"""With the most programs that it may take: where a part is of 0 or 1, sizes have programs of their own."""


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("grad", [False, True])
def test_a_divided_size_is_open(name: str, grad: bool) -> None:
    function, most = FUNCTIONS[name]
    jitted = dsjit.jit(function)
    for length in LENGTHS:
        x = torch.arange(4.0 * length).view(length, 4).requires_grad_(grad)
        expected, found = (each(x) for each in (function, jitted))
        for one, other in zip(*[each if type(each) is tuple else (each,) for each in (expected, found)], strict=True):
            assert one.shape == other.shape
            assert one.stride() == other.stride()
            assert torch.equal(one, other)
        if grad:
            results = [(each if type(each) is tuple else (each,)) for each in (expected, found)]
            gradients = [torch.autograd.grad(sum((y * y).sum() for y in each), x)[0] for each in results]
            assert torch.equal(*gradients)
    behind = jitted_of(jitted)
    assert behind is not None
    assert behind.counters.calls_eager == 0
    assert behind.counters.traces <= most


@torch.library.custom_op("dsjit_tests::sums_in_blocks", mutates_args=())
def sums_in_blocks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As attention on GPUs does, it gives a row of sums that is padded to a multiple of 32."""
    return x * 2, torch.cat([x.sum(0), x.new_zeros(-x.shape[1] % 32)])


@sums_in_blocks.register_fake
def _(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), x.new_empty(-(-x.shape[1] // 32) * 32)


@pytest.mark.parametrize(
    "lengths", [(100, 128, 160, 77, 33, 31, 64, 500), (20, 25, 40, 50, 70, 33, 90, 7, 31, 64, 300)]
)
@pytest.mark.parametrize("grows", [False, True])
def test_what_an_op_pads_to_a_multiple_is_open(lengths: tuple[int, ...], grows: bool) -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        double, sums = sums_in_blocks(x.sin())
        return double.cos(), sums * 3

    jitted = dsjit.jit(function)
    for number, length in enumerate(lengths):
        x = torch.randn(3 + number * grows, length)
        for one, other in zip(function(x), jitted(x), strict=True):
            torch.testing.assert_close(one, other)
    behind = jitted_of(jitted)
    assert behind is not None
    assert behind.counters.calls_eager == 0
    assert behind.counters.traces <= 3  # one of them for lengths of one block


def test_a_rule_that_holds_for_few_sizes_alone_serves_these() -> None:
    """The next multiple of 512 is 512 for all sizes that were tried."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (0, -x.shape[0] % 512)) * 2

    jitted = dsjit.jit(function)
    for length in (4, 6, 9, 300, 512, 513, 700, 1025, 5):
        x = torch.arange(float(length))
        assert torch.equal(jitted(x), function(x))
