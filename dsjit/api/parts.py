"""The parts of a module: what is compiled one by one when the module itself must run in Python each time.

A beam search goes another way on every input, so that no tree of traces is worth its while; the decoder that it calls
goes the same way each time.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.module import _forward_unimplemented

__all__ = ["outermost_callables"]


def outermost_callables(module: nn.Module) -> Iterator[nn.Module]:
    """The modules below `module` that can be called, but none that is below another of them.

    Lists and dicts of modules have no `forward`, and are looked into.
    """
    for child in module.children():
        if type(child).forward is _forward_unimplemented:
            yield from outermost_callables(child)
        else:
            yield child
