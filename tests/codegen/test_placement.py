"""When a kernel may write its result over a buffer that it reads, and where values live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import dsjit
from dsjit.codegen.placement import can_overwrite
from dsjit.ir.kernel import Apply, Axis, Block, Index, Kernel, Load, Param, Store
from tests.api.checks import check

F32 = torch.float32
AXIS = Axis("i", 8)
HERE = Index(0, (("i", 1),))
NEXT = Index(1, (("i", 1),))
PARAMS = (Param("x", F32, "read"), Param("y", F32, "write"))


def kernel(*bodies: tuple[Any, ...]) -> Kernel:
    return Kernel("k", PARAMS, (), tuple(Block((AXIS,), body) for body in bodies), "i")


LOAD = Load("a", "x", HERE, F32)
NEGATE = Apply("b", "neg", ("a",), F32)
STORE = Store("y", HERE, "b")


@pytest.mark.parametrize(
    ("case", "allowed"),
    [
        (kernel((LOAD, NEGATE, STORE)), True),
        (kernel((Load("a", "x", NEXT, F32), NEGATE, STORE)), False),
        (kernel((LOAD, NEGATE, STORE, Load("c", "x", HERE, F32))), False),
        (kernel((LOAD, NEGATE), (Load("c", "x", HERE, F32), Store("y", HERE, "c"))), False),
        (kernel((Load("a", "x", HERE, F32, "m"), NEGATE, STORE)), False),
        (kernel((Load("a", "x", HERE, F32, gathered=(("n", 1),)), NEGATE, STORE)), False),
    ],
    ids=[
        "same index",
        "shifted",
        "read again after the store",
        "read in an earlier block too",
        "masked read",
        "gathered read",
    ],
)
def test_a_result_overwrites_a_buffer_only_when_each_element_is_read_where_it_is_stored(
    case: Kernel, allowed: bool
) -> None:
    assert can_overwrite(case, "x", "y") is allowed


def chain(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    for _ in range(6):
        x = (x @ w).sigmoid()
    return x


def softmax_chain(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    for _ in range(4):
        x = (x @ w).softmax(-1)
    return x


@pytest.mark.parametrize("function", [chain, softmax_chain])
def test_intermediates_share_the_arena(function: Callable[..., torch.Tensor]) -> None:
    x, w = torch.randn(16, 16), torch.randn(16, 16)
    check(function, x, w)
    explanation = dsjit.explain(function)(x, w)
    assert 0 < explanation.arena_bytes <= 2 * x.nbytes < explanation.intermediate_bytes


def test_a_returned_value_has_memory_of_its_own_in_each_call() -> None:
    jitted = check(chain, torch.randn(4, 4), torch.randn(4, 4))
    first = jitted(torch.zeros(4, 4), torch.eye(4))
    kept = first.clone()
    jitted(torch.ones(4, 4), torch.eye(4))
    assert torch.equal(first, kept)


def test_a_view_of_a_library_result_lives_as_long_as_its_own_views() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        spectrum = torch.view_as_real(torch.fft.fft(x))
        return torch.cumsum(spectrum.select(-1, 0), 0)

    check(function, torch.randn(4, 5, dtype=torch.complex64))
