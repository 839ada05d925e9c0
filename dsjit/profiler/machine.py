"""What this machine attains: bytes and operations a second, measured once and kept in a file of the user's cache."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

__all__ = ["Machine", "cache_file", "measure", "this_machine"]

FOOTPRINTS: Final = tuple(2**power for power in range(14, 29, 2))
"""Bytes that one addition of two vectors moves: from what the first cache holds to what none does."""

PRODUCT_SIZE: Final = 1024
DTYPES: Final = (torch.float32, torch.float64, torch.bfloat16)
SECONDS: Final = 0.05
"""For one measurement; the best of its runs counts."""


@dataclass(frozen=True, slots=True)
class Machine:
    """processor, threads, torch: what the figures were measured with.

    bandwidth: (bytes moved, bytes a second) of an addition of two vectors, by how much it moves: what fits into a cache
        comes faster. flops: operations a second of a matrix product, by dtype ("float32").
    """

    processor: str
    threads: int
    torch: str
    bandwidth: tuple[tuple[int, float], ...]
    flops: Mapping[str, float]

    def attainable_bandwidth(self, nbytes: int) -> float:
        """Bytes a second for a step that moves so many bytes: between two measurements, linear in the logarithms."""
        sizes = [size for size, _ in self.bandwidth]
        place = bisect_left(sizes, nbytes)
        if place == 0 or place == len(sizes):
            return self.bandwidth[min(place, len(sizes) - 1)][1]
        (low, slow), (high, fast) = self.bandwidth[place - 1 : place + 1]
        part = math.log(nbytes / low) / math.log(high / low)
        return math.exp(math.log(slow) * (1 - part) + math.log(fast) * part)

    def attainable_flops(self, dtype: str) -> float:
        """Operations a second; float32's for a dtype that was not measured."""
        return self.flops.get(dtype, self.flops["float32"])

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "bandwidth": [list(pair) for pair in self.bandwidth], "flops": dict(self.flops)}


def this_machine(path: Path | None = None) -> Machine:
    """As the file at `path` (default: `cache_file()`) has it, or measured now (half a second) and written there.

    A file that cannot be read or written is no error.
    """
    path = path or cache_file()
    setting = (_processor(), torch.get_num_threads(), torch.__version__)
    known: dict[str, Any] = {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return _machine(known[_key(*setting)])
    except (OSError, ValueError, KeyError, TypeError):
        machine = measure(*setting)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(f".{os.getpid()}")
        content = {**(known if isinstance(known, dict) else {}), _key(*setting): machine.to_dict()}
        whole.write_text(json.dumps(content, indent=1), encoding="utf-8")
        whole.replace(path)
    except OSError:
        pass
    return machine


def cache_file() -> Path:
    """`dsjit/machine.json` in the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsjit" / "machine.json"


def _key(processor: str, threads: int, version: str) -> str:
    return f"{processor}, {threads} threads, torch {version}"


def _machine(data: Mapping[str, Any]) -> Machine:
    pairs = tuple([(int(size), float(rate)) for size, rate in data["bandwidth"]])
    flops = {str(dtype): float(rate) for dtype, rate in data["flops"].items()}
    if not pairs or "float32" not in flops:
        raise ValueError("the file of measurements lacks some")
    return Machine(str(data["processor"]), int(data["threads"]), str(data["torch"]), pairs, flops)


def measure(processor: str, threads: int, version: str) -> Machine:
    """Measure now, with torch's number of threads."""
    with torch.no_grad():
        rates = [size / _addition(size) for size in FOOTPRINTS]
        # What moves less has less to wait for: where it took longer, the call or another process was in the way.
        bandwidth = tuple([(size, max(rates[number:])) for number, size in enumerate(FOOTPRINTS)])
        flops = {str(dtype).removeprefix("torch."): 2 * PRODUCT_SIZE**3 / _product(dtype) for dtype in DTYPES}
    return Machine(processor, threads, version, bandwidth, flops)


def _addition(nbytes: int) -> float:
    a, b, c = (torch.zeros(nbytes // 12) for _ in range(3))
    return _best(lambda: torch.add(a, b, out=c))


def _product(dtype: torch.dtype) -> float:
    a, b, c = (torch.zeros(PRODUCT_SIZE, PRODUCT_SIZE, dtype=dtype) for _ in range(3))
    return _best(lambda: torch.mm(a, b, out=c))


def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest of the runs that fit into the time, and of three at least."""
    call()
    best, start, rounds = math.inf, time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - start < SECONDS:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
        rounds += 1
    return best


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
