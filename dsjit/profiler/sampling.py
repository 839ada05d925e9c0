"""Which lines run while no Program does: a thread looks now and then where the profiled one is.

Compiled time is measured step by step. What else there is (eager calls, Python, autograd's engine, optimizers) has no
clocks in it, and gets none: it is sampled, as statistical profilers do (Graham, Kessler and McKusick, "gprof: a call
graph execution profiler", 1982). A sample counts for the time since the one before it.

A thread can look only when the other one gives the interpreter's lock away, as torch's ops do while they run; pure
Python does so every few milliseconds (`sys.getswitchinterval`), so what is shorter may be told at the next line.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Final, TypeAlias

from dsjit.ir.graph import UNKNOWN_SOURCE, Source

__all__ = ["MemorySample", "Sampler", "Sighting", "Where"]

SHORTEST: Final = 0.01
LONGEST: Final = 0.05
"""Seconds between two looks: short profiles need some, long ones have enough. To wake up for one takes some 50 µs of a
processor on virtual machines, to look 5."""

SHORTEST_NS: Final = int(1e9 * SHORTEST)

SHARE: Final = 1 / 50
"""Of the time so far: the seconds to the next look, between these two."""

Where: TypeAlias = tuple[str, Source]
"""What ran, in words, and the user's line that it ran for."""

Sighting: TypeAlias = tuple[bool, Where, int]
"""Whether it was inside a jitted call; what ran; ns since the look before."""

MemorySample: TypeAlias = tuple[int, int]
"""(ns of the monotonic clock, bytes that the process held in memory)"""

_LIBRARIES: Final = (
    (f"torch{os.sep}optim", "optimizer"),
    (f"torch{os.sep}nn{os.sep}utils", "gradient utilities"),
    (f"torch{os.sep}autograd", "autograd's engine"),
    (f"torch{os.sep}utils{os.sep}data", "loading data"),
    (f"torch{os.sep}", "torch"),
    (f"dsjit{os.sep}", "dsjit"),
)
"""By a part of the path of a file between the user's line and what runs; the first that is found tells what it is."""

PLAIN: Final = "Python and eager ops"
"""What runs when no library's frame is above the user's line: ops are called without one."""

_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Sampler:
    """Looks at the thread `thread` from `start` to `stop`; on_sighting and on_memory are told what was seen, on the
    thread of the Sampler.

    is_users: whether code from a file is the user's. hidden: code in whose frames nothing is to be seen, as it is
    told otherwise. call: the code in whose frames jitted calls run. paused: asked before each look.
    """

    def __init__(
        self,
        thread: int,
        is_users: Callable[[str], bool],
        hidden: CodeType,
        call: CodeType,
        paused: Callable[[], bool],
        on_sighting: Callable[[Sighting], None],
        on_memory: Callable[[MemorySample], None],
    ) -> None:
        self._thread = thread
        self._is_users = is_users
        self._hidden = hidden
        self._call = call
        self._paused = paused
        self._on_sighting = on_sighting
        self._on_memory = on_memory
        self._ended = False
        self._worker = threading.Thread(target=self._watch, name="dsjit profile", daemon=True)

    def start(self) -> None:
        self._worker.start()

    def stop(self) -> None:
        """Returns when it does not look any more."""
        self._ended = True
        self._worker.join()

    def _watch(self) -> None:
        begin = last = time.monotonic_ns()
        saw = True
        with _resident_memory() as resident:
            while True:
                # While Programs run there is nothing to be seen.
                time.sleep(min(max(SHARE * (last - begin) / 1e9, SHORTEST), LONGEST) if saw else LONGEST)
                if self._ended:
                    return
                now = time.monotonic_ns()
                # A Program may have taken most of the time since a look that saw nothing.
                saw = not self._paused() and self._look(now - last if saw else min(now - last, SHORTEST_NS))
                held = resident()
                if held:
                    self._on_memory((now, held))
                last = now

    def _look(self, since: int) -> bool:
        """Whether there was something to see. No frame is kept: it would keep what its variables hold."""
        frame = sys._current_frames().get(self._thread)
        files: list[str] = []
        source = None
        inside = False
        while frame is not None and not (inside and source):
            code = frame.f_code
            if code is self._hidden:
                return False
            inside = inside or code is self._call
            if source is None and self._is_users(code.co_filename):
                source = _source(frame)
            elif source is None:
                files.append(code.co_filename)
            frame = frame.f_back
        self._on_sighting((inside, (_library(files), source or UNKNOWN_SOURCE), since))
        return True


def _source(frame: FrameType) -> Source:
    code = frame.f_code
    return Source(code.co_filename, frame.f_lineno or code.co_firstlineno, code.co_qualname)


def _library(files: list[str]) -> str:
    """What the code of these files, the innermost first, is there for."""
    found = [name for name_part, name in _LIBRARIES for file in files if name_part in file]
    return found[0] if found else PLAIN


@contextmanager
def _resident_memory() -> Iterator[Callable[[], int]]:
    """Tells what the process holds in memory; 0 where the system does not tell (it is no Linux)."""
    try:
        file = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        yield lambda: 0
        return
    try:
        yield lambda: int(os.pread(file, 128, 0).split()[1]) * _PAGE
    finally:
        os.close(file)
