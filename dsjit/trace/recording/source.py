"""Finds the line of the user's code that an op belongs to."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

import torch

from dsjit.ir.graph import UNKNOWN_SOURCE, Source

__all__ = ["ModuleScopes", "SourceFinder"]

_CALL_IMPL: Final = torch.nn.Module._call_impl.__code__
_CAPTURE: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "capture.py")


@functools.cache
def _internal_roots() -> tuple[str, ...]:
    torch_root = os.path.dirname(os.path.abspath(torch.__file__))
    own_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = sysconfig.get_paths()
    roots = [torch_root, own_root]
    stdlib = paths["stdlib"]
    # site-packages lies inside the standard library's folder; only files directly of the library are internal.
    roots += [os.path.join(stdlib, name) for name in ("contextlib.py", "functools.py", "threading.py", "copy.py")]
    roots += ["<frozen", "<dsjit", "<__array_function__", "<eval_with_key"]
    return tuple(roots)


@dataclass(slots=True)
class ModuleScopes:
    """Paths of modules from the outermost module whose forward runs. Lives as long as one trace.

    The modules are read below their attribute access, which a trace watches.
    """

    paths: dict[int, dict[int, str]] = field(default_factory=dict)
    roots: list[torch.nn.Module] = field(default_factory=list)

    def path(self, modules: Sequence[torch.nn.Module], named: bool) -> str:
        """Of the first of `modules`, which run one inside the other, the last outermost.

        named: begin with the name of the outermost one's class, for a function that calls several models.
        """
        root = modules[-1]
        paths = self.paths.get(id(root))
        if paths is None:
            paths = self.paths[id(root)] = {id(root): ""}
            self.roots.append(root)
            _add_paths(root, "", paths)
        inner = next(paths[id(module)] for module in modules if id(module) in paths)
        return ".".join(filter(None, (type(root).__name__ if named else "", inner)))


def _add_paths(module: torch.nn.Module, prefix: str, paths: dict[int, str]) -> None:
    for name, child in object.__getattribute__(module, "__dict__")["_modules"].items():
        if child is not None and id(child) not in paths:
            paths[id(child)] = f"{prefix}{name}"
            _add_paths(child, f"{prefix}{name}.", paths)


def _frame_above(depth: int) -> FrameType | None:
    """The frame so far above the caller's; None on a thread of somebody else's that has no more."""
    try:
        return sys._getframe(depth + 1)
    except ValueError:
        return None


@dataclass(slots=True)
class SourceFinder:
    """Walks the Python stack to the innermost frame that is neither torch's nor dsjit's own."""

    internal: tuple[str, ...] = field(default_factory=_internal_roots)
    known: dict[str, bool] = field(default_factory=dict)
    sources: dict[tuple[str, int, str, str], Source] = field(default_factory=dict)
    scopes: ModuleScopes = field(default_factory=ModuleScopes)

    def is_users_file(self, file: str) -> bool:
        """Whether code from `file` is the user's: a library that builds on torch counts as theirs."""
        known = self.known.get(file)
        if known is None:
            known = self.known[file] = not file.startswith(self.internal)
        return known

    def current(self, depth: int = 1) -> Source:
        """The user's line that is running, seen from the caller `depth` frames up."""
        frame = _frame_above(depth)
        while frame is not None:
            code = frame.f_code
            if self.is_users_file(code.co_filename):
                return self._source(frame, "")
            frame = frame.f_back
        return UNKNOWN_SOURCE

    def of_op(self, depth: int = 1) -> Source:
        """The same, with the module path: for what a traced call does.

        Modules of torch's own that are jitted by themselves have no line of the user's but that of the call.
        """
        frame = _frame_above(depth)
        line: FrameType | None = None
        modules: list[torch.nn.Module] = []
        named = False
        traced = True
        while frame is not None and (traced or line is None):
            code = frame.f_code
            if code is _CALL_IMPL and traced:
                modules.append(frame.f_locals["self"])
                named = False
            elif self.is_users_file(code.co_filename):
                line = line or frame
                named = named or traced
            elif code.co_name == "capture" and code.co_filename == _CAPTURE:
                traced = False
            frame = frame.f_back
        if line is None:
            return UNKNOWN_SOURCE
        return self._source(line, self.scopes.path(modules, named) if modules else "")

    def _source(self, frame: FrameType, scope: str) -> Source:
        key = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name, scope)
        source = self.sources.get(key)
        if source is None:
            source = self.sources[key] = Source(*key)
        return source
