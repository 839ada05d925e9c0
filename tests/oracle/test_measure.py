"""Distances between tensors: in representable numbers, and from double precision."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsjit.oracle.measure import measure, same_values, ulp_distance

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("start", [0.0, 1.0, -1.0, 1e-3])
def test_neighbours_are_one_step_apart(dtype: torch.dtype, start: float) -> None:
    a = torch.tensor([start], dtype=dtype)
    bits = a.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]) + 3
    assert ulp_distance(a, bits.view(dtype)).item() == 3


@pytest.mark.parametrize(
    ("a", "b", "steps"),
    [(0.0, -0.0, 0), (nan, nan, 0), (nan, 1.0, inf), (inf, inf, 0), (1e-45, -1e-45, 2), (inf, 3.4028235e38, 1)],
)
def test_special_values(a: float, b: float, steps: float) -> None:
    assert ulp_distance(torch.tensor([a]), torch.tensor([b])).item() == steps


@given(st.floats(width=32, allow_nan=False), st.floats(width=32, allow_nan=False), st.floats(width=32, allow_nan=False))
def test_steps_add_up(a: float, b: float, c: float) -> None:
    low, middle, high = (torch.tensor([value]) for value in sorted((a, b, c)))
    assert (ulp_distance(low, middle) + ulp_distance(middle, high)).item() == ulp_distance(low, high).item()


def test_integers_and_bools_are_equal_or_not() -> None:
    assert ulp_distance(torch.tensor([1, 2]), torch.tensor([1, 3])).tolist() == [0, inf]
    assert ulp_distance(torch.tensor([True]), torch.tensor([False])).item() == inf


def test_equality_is_of_bits_but_for_nan() -> None:
    assert same_values(torch.tensor([nan, 1.0]), torch.tensor([-nan, 1.0]))
    assert not same_values(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_values(torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64))
    assert not same_values(torch.zeros(2), torch.zeros(1, 2))


def test_a_measure_has_ours_and_eagers_error() -> None:
    third = torch.tensor([1 / 3], dtype=torch.float64)
    eager, ours = third.float(), torch.tensor([0.5])
    found = measure(ours, eager, third)
    assert found.differing == 1 and found.worst == (0,)
    assert found.our_error == pytest.approx(1 / 6) and found.our_relative == pytest.approx(0.5)
    assert found.eager_error is not None and 0 < found.eager_error < 2e-8


def test_complex_numbers_count_as_pairs_and_empty_tensors_as_equal() -> None:
    assert measure(torch.tensor([1 + 1j]), torch.tensor([1 + 2j])).max_abs == 1
    assert measure(torch.zeros(0), torch.zeros(0)).max_ulp == 0
