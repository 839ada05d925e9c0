"""Calls of loops on tensor values, with the number of rounds that each takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dsjit
from tests.api.checks import assert_same

__all__ = ["halving", "is_small_by_a_branch", "run"]


def halving(rounds: int) -> Tensor:
    """What takes so many rounds of halving to come below 1 (none, for 0)."""
    return torch.tensor([0.3, 0.75, 0.1, 0.5]) * 2**rounds


def run(function: Callable[..., Any], rounds: list[int], **options: Any) -> Any:
    """Call the jitted function on inputs of so many rounds, compare each call with eager; the jitted function."""
    jitted = dsjit.jit(function, **options)
    for count in rounds:
        mine, theirs = halving(count), halving(count)
        assert_same(jitted(mine), function(theirs))
        assert_same(mine, theirs)
    return jitted


def is_small_by_a_branch(x: Tensor) -> bool:
    largest = x.max().item()
    if largest < 1.0:
        return x.dim() == 1
    return False
