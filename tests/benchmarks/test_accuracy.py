"""Transcendental functions in every dtype are within their bound, or no worse than eager; the table says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.accuracy import DTYPES, FORMATS, NAMES, bound, errors, measure

TABLE = Path(__file__).parent.parent.parent / "docs" / "numerics.md"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["exp", "log", "sin", "tanh", "sigmoid", "erf", "rsqrt", "lgamma", "atan2"])
def test_a_function_is_within_its_bound_or_as_good_as_eager(name: str, dtype: torch.dtype) -> None:
    row = measure(name, dtype, 14)
    assert row.ours <= max(bound(name, dtype), row.eager), row


def test_no_bound_of_float32_exceeds_two_ulp_but_that_of_the_library_that_eager_calls() -> None:
    assert [name for name in NAMES if bound(name, torch.float32) > 2] == ["lgamma"]


def test_every_row_of_the_table_is_within_its_bound_or_as_good_as_eager() -> None:
    rows = dict(re.findall(r"^\| (\w+) \| [\w.]+ \| ([\d.e+|\s]+) \|$", TABLE.read_text(), re.MULTILINE))
    assert set(rows) == set(NAMES)
    for name, cells in rows.items():
        figures = [float(cell) for cell in cells.split("|")]
        for dtype, ours, eager in zip(DTYPES, figures[::2], figures[1::2], strict=True):
            assert ours <= max(bound(name, dtype), eager), (name, dtype)


@pytest.mark.parametrize(
    ("found", "exact", "ulps"),
    [
        (1.0, 1.0, 0.0), (1.0 + 2**-23, 1.0, 1.0), (2.0**-149, 0.0, 1.0), (float("inf"), 2.0**128, 0.0),
        (float("inf"), 2.0**128 - 2.0**103, 0.5), (float("nan"), 1.0, float("inf")), (float("nan"), float("nan"), 0.0),
    ],
)  # fmt: skip
def test_errors_are_counted_in_float32_steps(found: float, exact: float, ulps: float) -> None:
    one, other = (torch.tensor([x], dtype=torch.float64) for x in (found, exact))
    assert errors([one], other, FORMATS[torch.float32])[0].item() == ulps
