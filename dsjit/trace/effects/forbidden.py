"""Calls that reach outside the program: their results or effects would be lost or stale in a compiled call."""

from __future__ import annotations

import io
import types
from typing import Any, Final

import numpy.random

from dsjit.ir.graph import Source
from dsjit.trace.reads.cached_functions import FILLS_A_CACHE
from dsjit.trace.reads.library import is_library_file, is_stdlib_file

__all__ = ["RandomStates", "blame", "forbidden_builtin", "forbidden_code", "is_loading"]

_CLOCKS: Final = (
    "time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time",
    "process_time_ns", "thread_time", "thread_time_ns", "localtime", "gmtime", "ctime", "strftime",
)  # fmt: skip
_RANDOM: Final = ("random", "getrandbits", "seed", "getstate", "setstate")

_BUILTINS: Final[dict[str, tuple[str, str]]] = {
    **dict.fromkeys(_CLOCKS, ("time", "reads a clock")),
    "sleep": ("time", "sleeps"),
    "now": ("datetime", "reads a clock"),
    "utcnow": ("datetime", "reads a clock"),
    "today": ("datetime", "reads a clock"),
    **dict.fromkeys(_RANDOM, ("random", "draws from Python's random")),
    "urandom": ("posix", "reads os.urandom"),
    "getrandom": ("posix", "reads os.getrandom"),
    "getpid": ("posix", "reads the process id"),
    "getcwd": ("posix", "reads the working directory"),
    "stat": ("posix", "reads the file system"),
    "listdir": ("posix", "reads the file system"),
    "system": ("posix", "runs a command"),
    "print": ("builtins", "prints"),
    "input": ("builtins", "reads standard input"),
    "warn": ("_warnings", "warns"),
    "open": ("io", "opens a file"),
    **dict.fromkeys(("read", "readline", "readlines", "readinto", "write", "writelines"), ("io", "uses a file")),
    **dict.fromkeys(("manual_seed", "set_state", "get_state", "initial_seed"), ("torch._C", "seeds a generator")),
    **dict.fromkeys(("connect", "recv", "recv_into", "send", "sendall", "accept"), ("socket", "uses a socket")),
}
"""Name of a C function: the module that it belongs to, and what it does."""

_ALIASES: Final = {"_io": "io", "_random": "random", "_socket": "socket", "nt": "posix"}

FORBIDDEN_NAMES: Final = frozenset(_BUILTINS)

_MODULES: Final = {
    "random": "draws from Python's random",
    "secrets": "reads secrets",
    "uuid": "makes a UUID",
    "tempfile": "makes temporary files",
    "subprocess": "runs a command",
    "socket": "uses a socket",
}
_FUNCTIONS: Final = {
    ("os", "_Environ.__setitem__"): "writes os.environ",
    ("os", "_Environ.__delitem__"): "writes os.environ",
}


_STREAMS: Final = "uses a stream or an event of a device"
_MEMORY: Final = "asks about the memory of a device"
_OF_TORCH: Final[dict[tuple[str, str], str]] = {
    **dict.fromkeys(
        [
            *[(module, name) for module in ("torch.cuda", "torch.accelerator")
              for name in ("synchronize", "set_stream", "current_stream", "default_stream", "StreamContext.__enter__")],
            *[("torch.cuda.streams", f"Event.{name}")
              for name in ("record", "wait", "query", "synchronize", "elapsed_time")],
            *[("torch.cuda.streams", f"Stream.{name}")
              for name in ("wait_event", "wait_stream", "record_event", "query", "synchronize")],
            *[("torch.cuda.graphs", name)
              for name in ("CUDAGraph.capture_begin", "CUDAGraph.replay", "graph.__enter__")],
        ],
        _STREAMS,
    ),
    **dict.fromkeys(
        [
            (module, name) for module in ("torch.cuda.memory", "torch.accelerator.memory")
            for name in ("memory_stats", "memory_allocated", "max_memory_allocated", "memory_reserved",
                         "max_memory_reserved", "reset_peak_memory_stats", "mem_get_info", "empty_cache")
        ],
        _MEMORY,
    ),
}  # fmt: skip
"""By module and name, what Python functions of torch do that a compiled call would not do again."""

PASSING: Final = frozenset({"warns", FILLS_A_CACHE})
"""What a call often does once only."""

_IN_MEMORY: Final = (io.StringIO, io.BytesIO)


def forbidden_builtin(function: Any) -> str | None:
    """What the C function `function` does that a compiled call could not repeat, or None."""
    found = _BUILTINS.get(function.__name__)
    if found is None:
        return None
    owner = getattr(function, "__self__", None)
    if isinstance(owner, _IN_MEMORY):
        return None
    if owner is None or isinstance(owner, types.ModuleType):
        module = function.__module__ or ""
    else:
        module = (owner if isinstance(owner, type) else type(owner)).__module__
    return found[1] if _ALIASES.get(module, module) == found[0] else None


def forbidden_code(module: str, code: types.CodeType) -> str | None:
    """The same for a Python function of the standard library, or of torch."""
    name = code.co_qualname
    if module.startswith("torch"):
        return _OF_TORCH.get((module, name))
    if not is_stdlib_file(code.co_filename):
        return None
    return _MODULES.get(module.partition(".")[0]) or _FUNCTIONS.get((module, name))


def blame(frame: types.FrameType | None) -> Source | None:
    """The user's line that `frame` runs for; None when torch or another library called, not the user, or when it is
    logging's way to a record (whole records are told again)."""
    while frame is not None and (is_stdlib_file(frame.f_code.co_filename) or _passes_on(frame)):
        if frame.f_globals.get("__name__") == "logging":
            return None
        frame = frame.f_back
    if frame is None or is_library_file(frame.f_code.co_filename):
        return None
    return Source(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)


def _passes_on(frame: types.FrameType) -> bool:
    """Whether `frame` is a function of torch's that hands seeds to the generator of a GPU, or saves its state, for its
    caller. (What `torch.manual_seed` does, the program does.)"""
    module, name = frame.f_globals.get("__name__"), frame.f_code.co_name
    return module == "torch.cuda.random" or (module, name) in (
        ("torch.cuda", "_lazy_call"),
        ("torch.random", "fork_rng"),
    )


def is_loading(frame: types.FrameType | None) -> bool:
    """Whether `frame` runs because a module is loaded: once in a process, whoever asks for it."""
    while frame is not None and frame.f_globals.get("__name__") != "importlib._bootstrap":
        frame = frame.f_back
    return frame is not None


class RandomStates:
    """The state of numpy's global generator at one moment (its functions raise no profile events)."""

    def __init__(self) -> None:
        self._numpy = self._state()

    @staticmethod
    def _state() -> tuple[int, bytes]:
        state: Any = numpy.random.get_state(legacy=False)
        return state["state"]["pos"], state["state"]["key"].tobytes()

    def why_changed(self) -> str | None:
        """What was drawn from since, or None."""
        return None if self._state() == self._numpy else "draws from numpy.random"
