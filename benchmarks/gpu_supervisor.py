"""A process that measures on a GPU, watched by one that does not touch it.

A kernel that reads where it must not leaves the device unusable for its process, and one that never ends hangs it. So
the process that measures writes down what it begins and what it has found. When it dies or is silent for too long, the
one that watches notes a failure there, and starts another, which goes on behind it.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["Measured", "Progress", "supervise"]

SILENCE: Final = 100.0
"""Seconds that one step may take: the longest compile takes about 60."""

LAST: Final = 105.0
"""Seconds that what was begun in time may take in any case, so that all ends before 8 minutes are over."""

_POLL: Final = 0.2


@dataclass(slots=True)
class Measured:
    """Of one workload. correct: whether dsjit's results were eager's. cold_s: seconds of the first two calls.

    warm_us: microseconds of one call, by contender. bandwidth: share of a copy's, where memory bounds it.
    failures: what contenders raised.
    """

    name: str
    correct: bool = True
    cold_s: dict[str, float] = field(default_factory=dict)
    warm_us: dict[str, float] = field(default_factory=dict)
    bandwidth: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Progress:
    """What is in the file. begun: the workload and the contender that are being run; empty in the end."""

    path: Path | None
    workloads: list[Measured]
    machine: dict[str, str] = field(default_factory=dict)
    begun: tuple[str, ...] = ()

    @staticmethod
    def read(path: Path | None, names: Sequence[str]) -> Progress:
        """With a Measured for each of `names`, empty where the file has none or is not there."""
        data = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else {}
        known = {each["name"]: Measured(**each) for each in data.get("workloads", ())}
        workloads = [known.get(name) or Measured(name) for name in names]
        return Progress(path, workloads, data.get("machine", {}), tuple(data.get("begun", ())))

    def begin(self, workload: str, contender: str) -> None:
        if self.begun != (workload, contender):
            self.begun = workload, contender
            self.write()

    def done(self) -> None:
        self.begun = ()
        self.write()

    def write(self) -> None:
        """The file is replaced whole."""
        if self.path is None:
            return
        data = {"machine": self.machine, "begun": self.begun, "workloads": [asdict(each) for each in self.workloads]}
        whole = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        whole.write_text(json.dumps(data, indent=1), encoding="utf-8")
        whole.replace(self.path)


def supervise(
    command: Sequence[str],
    path: Path,
    names: Sequence[str],
    seconds: float,
    silence: float = SILENCE,
    last: float = LAST,
) -> Progress:
    """What processes of `command` have written to `path`: at least one, and another whenever one died. The seconds that
    are left are behind the command. Compilers find nothing that earlier runs compiled."""
    start, died = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as caches:
        kept = {name: f"{caches}/{name}" for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")}
        while True:
            left = seconds - (time.monotonic() - start)
            process = subprocess.Popen([*command, "--seconds", str(max(left, 0.0))], env={**os.environ, **kept})
            why = _watch(process, path, silence, start + seconds + last)
            progress = Progress.read(path, names)
            if not progress.begun and process.returncode in (0, 1) and path.exists():
                return progress
            died += 1
            goes_on = bool(progress.begun) and left > 0 and died <= len(names)
            _note(progress, why)
            if not goes_on:
                return progress


def _watch(process: subprocess.Popen[bytes], path: Path, silence: float, deadline: float) -> str:
    """Waits for its end, and says how it came; ends it when nothing new is written."""
    told, since = None, time.monotonic()
    while process.poll() is None:
        time.sleep(_POLL)
        stamp = path.stat().st_mtime_ns if path.exists() else None
        if stamp != told:
            told, since = stamp, time.monotonic()
        if time.monotonic() - since > silence or time.monotonic() > deadline:
            process.kill()
            process.wait()
            return "it did not end, and was killed"
    return f"its process ended with status {process.returncode}"


def _note(progress: Progress, why: str) -> None:
    """That what was begun failed, so that it is not begun again: for one workload, or before any of them."""
    if progress.begun:
        name, contender = progress.begun
        own = [each for each in progress.workloads if each.name == name]
        for each in own or progress.workloads:
            if contender not in each.failures:
                each.failures[contender] = why
                each.correct = each.correct and not contender.startswith("dsjit")
    progress.done()
