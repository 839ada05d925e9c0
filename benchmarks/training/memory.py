"""Counts the bytes of live tensors, by the allocator of torch, the same way whoever runs.

`count_from_now` makes torch's CPU allocator keep a table of all blocks that it hands out; `live_bytes` reads the sum,
`most_live_bytes` its highest value while something runs, from the [memory] events of torch's profiler.

What is counted: every block that torch's CPU allocator gives in this thread and in those of autograd's engine, to eager
ops, to code of torch.compile and to dsjit, whose arenas are tensors: blocks that are kept for the next call are live.
What is not: what libraries and kernels take from `malloc` (oneDNN's and MKL's scratch memory, thread-local buffers),
blocks taken by threads inside a parallel loop, and Python. The resident size of the process has these.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch._C._profiler import _ExtraFields_Allocation
from torch.profiler import ProfilerActivity, profile

__all__ = ["count_from_now", "live_bytes", "most_live_bytes", "most_resident_bytes"]

LIBRARY: Final = Path(torch.__file__).parent / "lib" / "libc10.so"
FLAG: Final = "FLAGS_caffe2_report_cpu_memory_usage"
"""Of c10/core/CPUAllocator.cpp: note blocks also while no profiler runs, so that their release is seen later."""


def count_from_now() -> None:
    """Call it before the first tensor that is to be counted."""
    ctypes.c_bool.in_dll(ctypes.CDLL(str(LIBRARY)), FLAG).value = True


def live_bytes() -> int:
    """Of tensors that exist now and did not when counting began."""
    return _totals(lambda: torch.empty(1, dtype=torch.uint8))[0] - 1


def most_live_bytes(run: Callable[[], object]) -> int:
    """The most that are live at once while `run` runs. Its result is released."""
    return max(_totals(run), default=0)


def _totals(run: Callable[[], object]) -> list[int]:
    """Live bytes after each allocation and release, in order of time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    roots = profiler.profiler.kineto_results.experimental_event_tree()
    events = [event for event in _events(roots) if isinstance(event.extra_fields, _ExtraFields_Allocation)]
    events.sort(key=lambda event: event.start_time_ns)
    return [event.extra_fields.total_allocated for event in events]


def _events(roots: Iterable[Any]) -> Iterator[Any]:
    stack = list(roots)
    while stack:
        event = stack.pop()
        yield event
        stack += event.children


def most_resident_bytes(run: Callable[[], object]) -> int:
    """The largest resident size of this process while `run` runs, on Linux (see proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")
    run()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")
