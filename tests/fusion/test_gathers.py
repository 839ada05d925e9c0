"""Elements picked by numbers: what is fused with what, and the Kernels that this gives."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import dsjit
from dsjit.api.explain import Explanation
from tests.api.checks import check

X = torch.linspace(-2, 2, 12 * 32).reshape(12, 32)
ROWS = torch.tensor([3, 0, 11, 3, 7])
COLUMNS = torch.tensor([31, 5, 5, 0])


def explained(function: Callable[..., Any], *args: Tensor) -> Explanation:
    """The explanation of `function`, which equals eager and runs compiled."""
    with torch.no_grad():
        check(function, *args)
        explanation: Explanation = dsjit.explain(function)(*args)
    assert explanation.eager_reasons == ()
    return explanation


def without_lines(text: str) -> str:
    """A printed Kernel without the user's lines."""
    return "\n".join(line.split("  #")[0] for line in text.splitlines())


def test_rows_are_copied_by_numbers_that_are_checked_once_a_row() -> None:
    (kernel,) = explained(lambda x, rows: x[rows], X, ROWS).kernels
    assert without_lines(kernel.text) == dedent("""\
        kernel fused_index(t1: i64*, t0: f32*, t2: f32* write):
            for i0 in parallel(5):
                x0 = t1[i0]
                c1 = i64(0)
                c2 = i64(12)
                v3 = lt(x0, c1)
                v4 = add(x0, c2)
                v5 = select(v3, v4, x0)
                v6 = ge(v5, c1)
                v7 = lt(v5, c2)
                v8 = and(v6, v7)
                check(v8)
                v9 = select(v8, v5, c1)
                for j0 in range(32):
                    x10 = t0[32*v9 + j0]
                    t2[32*i0 + j0] = x10""")


def test_negative_numbers_count_from_the_end_for_an_index_alone() -> None:
    (kernel,) = explained(lambda x, columns: x.index_select(1, columns), X, COLUMNS).kernels
    assert without_lines(kernel.text) == dedent("""\
        kernel fused_index_select(t1: i64*, t0: f32*, t2: f32* write):
            for i0 in parallel(12):
                for j0 in range(4):
                    x0 = t1[j0]
                    c1 = i64(0)
                    c2 = i64(32)
                    v3 = ge(x0, c1)
                    v4 = lt(x0, c2)
                    v5 = and(v3, v4)
                    check(v5)
                    v6 = select(v5, x0, c1)
                    x7 = t0[v6 + 32*i0]
                    t2[4*i0 + j0] = x7""")


ONE_KERNEL: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "a map of what is picked": (lambda x, i: x[i].exp() * 2, (X, ROWS)),
    "embedding and layer norm": (lambda x, i: F.layer_norm(F.embedding(i, x) + x[:5], (32,)), (X, ROWS)),
    "a sum of what is picked": (lambda x, i: x[:, i].sum(-1), (X, COLUMNS)),
    "numbers that are computed": (lambda x, i: x[(i * 2 + 1) % 12], (X, ROWS)),
    "one element of each row": (lambda x, i: -x.gather(1, i), (X, torch.arange(12).reshape(12, 1))),
    "a transposed source": (lambda x, i: x.t()[i] + 1, (X, ROWS)),
    "a part of the source": (lambda x, i: x[2:10, ::2][i] + 1, (X, torch.tensor([0, 7, -8]))),
    "a reversed source": (lambda x, i: x.flip(0)[i] + 1, (X, ROWS)),
    "several indices": (lambda x, i, j: x[i[:, None], j] * x[j % 12, i[:, None]], (X, ROWS, COLUMNS)),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_KERNEL)
def test_one_kernel(case: str) -> None:
    function, args = ONE_KERNEL[case]
    explanation = explained(function, *args)
    assert len(explanation.kernels) == 1, explanation
    assert explanation.library_calls == ()


def test_a_source_that_is_computed_is_made_in_memory_first() -> None:
    explanation = explained(lambda x, rows: x.exp()[rows] + 1, X, ROWS)
    assert [kernel.ops for kernel in explanation.kernels] == [
        ("aten.exp.default",), ("aten.index.Tensor", "aten.add.Tensor"),
    ]  # fmt: skip
    (reason,) = explanation.reasons
    assert "has to be in memory" in reason


def test_a_source_that_is_read_in_place_too_is_made_once() -> None:
    explanation = explained(lambda x, rows: x.exp()[rows] + x.exp()[:5], X, ROWS)
    assert sum(kernel.ops.count("aten.exp.default") for kernel in explanation.kernels) == 1


def test_what_is_picked_is_not_picked_again_along_a_broadcast() -> None:
    explanation = explained(lambda x, rows: x[rows][:, None] * torch.ones(5, 64, 32), X, ROWS)
    assert len(explanation.kernels) == 2


KEPT: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "a mask": (lambda x, m: x[m], (X, X[:, 0] > 0)),
    "complex numbers": (lambda x, i: x[i], (torch.complex(X, X), ROWS)),
    "nothing to pick": (lambda x, i: x[i], (X, ROWS[:0])),
}


@pytest.mark.parametrize("case", KEPT)
def test_a_library_call(case: str) -> None:
    function, args = KEPT[case]
    assert explained(function, *args).kernels == ()


def test_a_result_that_nobody_reads_is_checked_all_the_same() -> None:
    def function(x: Tensor, rows: Tensor) -> Tensor:
        x[rows]
        return x + 1

    assert any("aten.index.Tensor" in kernel.ops for kernel in explained(function, X, ROWS).kernels)


def test_bytes_of_a_lookup_are_those_of_what_it_picks() -> None:
    (kernel,) = explained(lambda x, rows: x[rows], X, ROWS).kernels
    picked = 5 * 32 * 4
    assert (kernel.bytes_read, kernel.bytes_written) == (picked + ROWS.nbytes, picked)
