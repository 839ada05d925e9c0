"""Finds the line of the user's code that an op belongs to."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from dataclasses import dataclass, field
from types import FrameType

import torch

from dsjit.ir.graph import UNKNOWN_SOURCE, Source

__all__ = ["SourceFinder"]


@functools.cache
def _internal_roots() -> tuple[str, ...]:
    torch_root = os.path.dirname(os.path.abspath(torch.__file__))
    own_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = sysconfig.get_paths()
    roots = [torch_root, own_root]
    stdlib = paths["stdlib"]
    # site-packages lies inside the standard library's folder; only files directly of the library are internal.
    roots += [os.path.join(stdlib, name) for name in ("contextlib.py", "functools.py", "threading.py", "copy.py")]
    roots += ["<frozen", "<dsjit", "<__array_function__", "<eval_with_key"]
    return tuple(roots)


@dataclass(slots=True)
class SourceFinder:
    """Walks the Python stack to the innermost frame that is neither torch's nor dsjit's own."""

    internal: tuple[str, ...] = field(default_factory=_internal_roots)
    known: dict[str, bool] = field(default_factory=dict)
    sources: dict[tuple[str, int, str], Source] = field(default_factory=dict)

    def is_users_file(self, file: str) -> bool:
        """Whether code from `file` is the user's: a library that builds on torch counts as theirs."""
        known = self.known.get(file)
        if known is None:
            known = self.known[file] = not file.startswith(self.internal)
        return known

    def current(self, depth: int = 1) -> Source:
        """The user's line that is running, seen from the caller `depth` frames up."""
        frame: FrameType | None = sys._getframe(depth)
        while frame is not None:
            code = frame.f_code
            if self.is_users_file(code.co_filename):
                key = (code.co_filename, frame.f_lineno, code.co_name)
                source = self.sources.get(key)
                if source is None:
                    source = self.sources[key] = Source(*key)
                return source
            frame = frame.f_back
        return UNKNOWN_SOURCE
