"""Times, sizes and rates for people."""

from __future__ import annotations

__all__ = ["bytes_text", "percent_text", "rate_text", "time_text"]


def time_text(ns: float) -> str:
    """`12.3 µs`"""
    for limit, unit in ((1e3, "ns"), (1e6, "µs"), (1e9, "ms")):
        if ns < limit:
            return f"{ns / (limit / 1e3):.3g} {unit}"
    return f"{ns / 1e9:.3g} s"


def percent_text(share: float) -> str:
    """`12 %`, of a share from 0 to 1."""
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def bytes_text(count: float) -> str:
    """`1.5 MiB`"""
    for exponent, unit in ((0, "B"), (1, "KiB"), (2, "MiB")):
        if count < 1024 ** (exponent + 1):
            return f"{count / 1024**exponent:.4g} {unit}"
    return f"{count / 1024**3:.4g} GiB"


def rate_text(per_second: float, unit: str) -> str:
    """`12.3 GB/s`: thousands, as rates are told."""
    for limit, prefix in ((1e3, ""), (1e6, "k"), (1e9, "M"), (1e12, "G")):
        if per_second < limit:
            return f"{per_second / (limit / 1e3):.3g} {prefix}{unit}"
    return f"{per_second / 1e12:.3g} T{unit}"
