"""A curve of measured peaks goes from no budget down to the smallest that works."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory import MIB, UNLIMITED, Curve, Workload, measure, table

WIDTH, ROWS, BLOCKS = 256, 1024, 10


def network() -> tuple[nn.Module, tuple[Tensor, ...], object]:
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH)) for _ in range(BLOCKS)]
    return nn.Sequential(*blocks), (torch.randn(ROWS, WIDTH),), lambda model, x: model(x).square().mean()


@pytest.fixture(scope="module")
def curve() -> Curve:
    return measure(Workload("small", network), rounds=1, points=2, tell=lambda line: None)


def test_budgets_shrink_and_peaks_with_them(curve: Curve) -> None:
    assert curve.rows[0].budget == UNLIMITED and len(curve.rows) >= 3
    for one, other in pairwise(curve.rows):
        assert other.budget < one.budget and other.measured <= one.measured and other.kept <= one.kept


def test_each_peak_keeps_to_its_budget_and_is_the_one_that_was_told(curve: Curve) -> None:
    for row in curve.rows:
        assert row.predicted <= row.budget
        assert abs(row.measured - row.predicted) < 0.1 * row.predicted
        assert row.planning < row.first


def test_the_curve_begins_below_eager(curve: Curve) -> None:
    assert curve.rows[0].measured <= curve.plain + MIB < curve.eager


def test_the_table_has_a_row_for_each_budget(curve: Curve) -> None:
    assert table(curve).row_count == len(curve.rows)
