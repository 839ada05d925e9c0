"""What depends on which of two sizes is less, or on whether a size is beyond a number, is right for all sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import linalg

import dsjit
from dsjit.api.entry import jitted_of

CASES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "svdvals": lambda x: linalg.svdvals(x).sum(),
    "svd": lambda x: linalg.svd(x, full_matrices=False)[0].abs().sum(),
    "qr": lambda x: linalg.qr(x)[1].abs().sum(),
    "lu": lambda x: linalg.lu(x)[2].sum(),
    "pinv": lambda x: linalg.pinv(x).sum(),
    "nuclear_norm": lambda x: linalg.matrix_norm(x, "nuc"),
    "cond": lambda x: linalg.cond(x),
    "diag": lambda x: x.diag().sin().sum(),
    "trace": lambda x: x.sin().trace(),
    "tril_indices": lambda x: x.sum() * torch.tril_indices(x.shape[0], x.shape[1]).sum(),
    "fill_diagonal": lambda x: (x * 1).fill_diagonal_(2.0).sin().sum(),
}

SIZES = {
    "wide first": [(3, 5), (4, 6), (9, 6), (8, 3), (6, 6)],
    "tall first": [(9, 4), (8, 3), (3, 8), (5, 9), (4, 4)],
    "square first": [(4, 4), (5, 5), (6, 3), (3, 6)],
    "rows pass columns": [(3, 20), (4, 20), (31, 20), (20, 20), (19, 20)],
    "columns pass rows": [(20, 3), (20, 4), (20, 31), (20, 20)],
    "rows fall below columns": [(31, 20), (29, 20), (23, 20), (6, 20)],
}


def outcome(function, x):
    """The value and the gradient, or the error that the backward raises."""
    x = x.clone().requires_grad_()
    value = function(x)
    try:
        value.backward()
    except RuntimeError as error:
        return value.detach(), type(error), str(error).split(".")[0]
    return value.detach(), x.grad


@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_are_those_of_eager(name, sizes):
    jitted = dsjit.jit(CASES[name])
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        x = torch.randn(size, generator=generator, dtype=torch.float64)
        for found, expected in zip(outcome(jitted, x), outcome(CASES[name], x), strict=True):
            if isinstance(expected, torch.Tensor):
                torch.testing.assert_close(found, expected)
            else:
                assert found == expected


def programs_for(function, sizes):
    jitted = dsjit.jit(function)
    for size in sizes:
        jitted(torch.randn(size))
    behind = jitted_of(jitted)
    assert behind.counters.calls_eager == 0
    return behind.counters.compiles


@pytest.mark.parametrize(
    "function",
    [lambda x: x.softmax(-1) + x.sum(0), lambda x: (x @ x.T).tril().relu(), lambda x: x.T.contiguous().cumsum(0)],
    ids=["softmax", "product", "cumsum"],
)
def test_what_does_not_depend_on_the_order_of_sizes_is_one_program(function):
    assert programs_for(function, [(8, 20), (9, 30), (30, 9), (200, 3)]) == 2


def test_a_side_that_stays_the_shorter_one_is_one_program():
    assert programs_for(linalg.svdvals, [(8, 20), (9, 30), (10, 31), (3, 200)]) == 2
    assert programs_for(linalg.svdvals, [(8, 20), (9, 20), (10, 20), (19, 20)]) == 2


def test_explain_tells_the_order():
    jitted = dsjit.jit(linalg.svdvals)
    for size in [(8, 20), (9, 30)]:
        jitted(torch.randn(size))
    assert "s0 <= s1" in str(dsjit.explain(jitted)(torch.randn(9, 30)))
