"""The timeline in the Trace Event Format, which Perfetto and chrome://tracing open.

Source of the format: "Trace Event Format", Google, 2016 (complete events, ph "X", ts and dur in microseconds).
"""

from __future__ import annotations

from typing import Any

from dsjit.profiler.profile import ProfileData

__all__ = ["chrome_trace"]


def chrome_trace(data: ProfileData) -> dict[str, Any]:
    """Calls, programs and steps (those of the first runs) as nested events of the thread that made them."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": data.title}},
    ]
    for thread in sorted({span.thread for span in data.spans}):
        events.append({"ph": "M", "name": "thread_name", "pid": 0, "tid": thread, "args": {"name": f"thread {thread}"}})
    for span in data.spans:
        details: dict[str, Any] = {}
        if span.step >= 0:
            step = data.steps[span.step]
            details = {
                "ops": [f"{op.op} {op.file}:{op.line}" for op in step.ops],
                "bytes": step.bytes_read + step.bytes_written,
                "flops": step.flops,
            }
        events.append(
            {
                "ph": "X",
                "name": span.name,
                "cat": span.kind,
                "pid": 0,
                "tid": span.thread,
                "ts": span.begin_ns / 1e3,
                "dur": (span.end_ns - span.begin_ns) / 1e3,
                "args": details,
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ns"}
