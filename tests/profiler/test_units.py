"""Figures for people."""

from __future__ import annotations

import pytest

from dsjit.profiler.units import bytes_text, percent_text, rate_text, time_text


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0 ns"), (12.34, "12.3 ns"), (1500, "1.5 µs"), (2.5e6, "2.5 ms"), (3.25e9, "3.25 s"), (90e9, "90 s")],
)
def test_times(ns: float, text: str) -> None:
    assert time_text(ns) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**21, "2 MiB"), (3 * 2**30, "3 GiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(("share", "text"), [(0.0, "0 %"), (0.012, "1.2 %"), (0.5, "50 %"), (1.0, "100 %")])
def test_shares(share: float, text: str) -> None:
    assert percent_text(share) == text


@pytest.mark.parametrize(("rate", "text"), [(5, "5 B/s"), (2.5e9, "2.5 GB/s"), (1.5e12, "1.5 TB/s")])
def test_rates(rate: float, text: str) -> None:
    assert rate_text(rate, "B/s") == text
