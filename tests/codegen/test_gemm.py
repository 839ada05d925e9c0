"""Which matrix products go to BLAS natively, and that every layout gives torch's answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import dsjit
from dsjit.codegen.llvm.executor import gemm_available
from tests.api.checks import check

Make = Callable[[], tuple[torch.Tensor, torch.Tensor]]


def native(function: Callable[..., torch.Tensor], *args: torch.Tensor) -> list[bool]:
    return [call.native for call in dsjit.explain(function)(*args).library_calls]


LAYOUTS: dict[str, Make] = {
    "row by row": lambda: (torch.randn(5, 7), torch.randn(7, 3)),
    "right transposed": lambda: (torch.randn(5, 7), torch.randn(3, 7).t()),
    "left transposed": lambda: (torch.randn(7, 5).t(), torch.randn(7, 3)),
    "both transposed": lambda: (torch.randn(7, 5).t(), torch.randn(3, 7).t()),
    "window with a leading dimension": lambda: (torch.randn(5, 12)[:, 2:9], torch.randn(9, 8)[1:8, 4:7]),
    "one row": lambda: (torch.randn(1, 7), torch.randn(7, 3)),
    "one column": lambda: (torch.randn(5, 7), torch.randn(7, 1)),
    "one inner element": lambda: (torch.randn(5, 1), torch.randn(1, 3)),
    "float64": lambda: (torch.randn(5, 7, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)),
    "batched": lambda: (torch.randn(4, 5, 7), torch.randn(4, 7, 3)),
    "batched, right transposed": lambda: (torch.randn(4, 5, 7), torch.randn(4, 3, 7).transpose(1, 2)),
    "batched, heads split": lambda: (
        torch.randn(5, 4, 7).transpose(0, 1), torch.randn(6, 4, 7).permute(1, 2, 0)
    ),
    "batch expanded": lambda: (torch.randn(1, 5, 7).expand(4, 5, 7), torch.randn(4, 7, 3)),
}  # fmt: skip


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a @ b).relu()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blas_reads_matrices_where_they_lie(layout: str) -> None:
    torch.manual_seed(0)
    a, b = LAYOUTS[layout]()
    check(product, a, b)
    assert native(product, a, b) == [gemm_available()]


OTHERS: dict[str, Make] = {
    "no unit stride": lambda: (torch.randn(5, 14)[:, ::2], torch.randn(7, 3)),
    "int64": lambda: (torch.ones(5, 7, dtype=torch.int64), torch.ones(7, 3, dtype=torch.int64)),
    "bfloat16": lambda: (torch.randn(5, 7).bfloat16(), torch.randn(7, 3).bfloat16()),
    "rows expanded": lambda: (torch.randn(1, 7).expand(5, 7), torch.randn(7, 3)),
    "no rows": lambda: (torch.randn(0, 7), torch.randn(7, 3)),
    "nothing to add": lambda: (torch.randn(5, 0), torch.randn(0, 3)),
}


@pytest.mark.parametrize("layout", OTHERS)
def test_other_products_are_torchs_own(layout: str) -> None:
    torch.manual_seed(0)
    a, b = OTHERS[layout]()
    check(product, a, b)
    assert True not in native(product, a, b)
