"""Inputs that share memory with one that the call writes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import dsjit

Function = Callable[..., Any]


def branch(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x.add_(1)
    if y.sum() > 20:
        y.mul_(2)
    return x - y


def views(x: torch.Tensor, y: torch.Tensor) -> Any:
    before, inner = y.view(2, 2), x[1:3]
    inner.sub_(3)
    return before, before + 1, inner, x, y[1:]


def late(x: torch.Tensor, y: torch.Tensor) -> Any:
    first = x * 2
    head = x[:2]
    x.add_(5)
    head.mul_(3)
    return first, y * 1, head, y


FUNCTIONS: dict[str, Function] = {
    "write, then read": lambda x, y: x.mul_(2) + y,
    "read, then write": lambda x, y: (y + 1, x.mul_(2), y + 1),
    "both": lambda x, y: (x.add_(1), y.mul_(3), x + y),
    "copy": lambda x, y: x.copy_(y.flip(0)),
    "branch": branch,
    "views": views,
    "late": late,
}

OFFSETS = ((0, 4), (0, 0), (0, 2), (3, 1), (0, 8))


def memory(offsets: Sequence[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    whole = torch.arange(12.0)
    return whole, [whole[offset : offset + 4] for offset in offsets]


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_calls_are_compiled_and_see_every_write(function: Function, offsets: tuple[int, int]) -> None:
    jitted = dsjit.jit(function)
    dsjit.reset_stats()
    with torch.no_grad():
        for _ in range(3):
            one, expected_arguments = memory(offsets)
            two, arguments = memory(offsets)
            expected, found = function(*expected_arguments), jitted(*arguments)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            assert torch.equal(one, two)
            one.add_(100)
            two.add_(100)  # what is a view of the memory in eager is one here
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            for a, b in zip(expected if isinstance(expected, tuple) else (), found, strict=False):
                assert [a is x for x in expected_arguments] == [b is x for x in arguments]
    assert dsjit.stats().total.calls_eager == 0
    assert dsjit.stats().total.calls_compiled == 2


def test_other_offsets_and_separate_tensors_are_other_programs() -> None:
    jitted = dsjit.jit(FUNCTIONS["read, then write"])
    with torch.no_grad():
        for offsets in (*OFFSETS, *OFFSETS):
            one, arguments = memory(offsets)
            two, others = memory(offsets)
            torch.testing.assert_close(jitted(*arguments), FUNCTIONS["read, then write"](*others), rtol=0, atol=0)
            assert torch.equal(one, two)
            apart = (torch.ones(4), torch.ones(4))
            assert torch.equal(jitted(*apart)[2], torch.full((4,), 2.0))


def test_small_parts_of_much_memory_are_left_to_eager() -> None:
    jitted, whole = dsjit.jit(FUNCTIONS["write, then read"]), torch.zeros(100_000)
    with torch.no_grad(), pytest.warns(dsjit.DsjitWarning, match="a small part of it"):
        jitted(whole[:4], whole[2:6])
