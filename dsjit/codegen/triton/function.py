"""From Triton source to a Python function, which Triton can compile or interpret."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import triton.language as tl

from dsjit.codegen.triton.source import KernelSource

__all__ = ["load_function"]


def load_function(source: KernelSource, jit: Callable[[Any], Any], libdevice: Any) -> Any:
    """What the module of `source` defines under its name. jit: what `@triton.jit` means there.

    Triton reads the text of a function: it is found under a file name of its own, as that of a notebook is.
    """
    filename = f"<dsjit triton {source.name} {sha256(source.text.encode()).hexdigest()[:12]}>"
    linecache.cache[filename] = (len(source.text), None, source.text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {
        "__name__": f"dsjit.generated.{source.name}",
        "triton": SimpleNamespace(jit=jit),
        "tl": tl,
        "libdevice": libdevice,
    }
    exec(compile(source.text, filename, "exec"), namespace)
    return namespace[source.name]
