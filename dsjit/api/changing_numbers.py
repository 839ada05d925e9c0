"""Which numbers of Python's have changed between the calls of a jitted object, and are inputs of its next program.

The first program knows every number that the function read. When a later call fits no program because an int or a float
is another one, the place where it was found is opened (`trace.numbers.open_places`), as a size that changes is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dsjit.api.recompiles import Cause
from dsjit.api.trace_tree import Miss, TraceTree
from dsjit.trace.capture import Capture
from dsjit.trace.reads.paths import Path

__all__ = ["ChangingNumbers"]


class ChangingNumbers:
    """What is known of one jitted object."""

    def __init__(self) -> None:
        self._changed: frozenset[Path] = frozenset()
        self._closed: frozenset[Path] = frozenset()
        self._grows_gradients: bool | None = None

    def open_paths(
        self,
        trees: Sequence[TraceTree],
        missed: tuple[TraceTree, Miss] | None,
        cause: Cause | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> frozenset[Path]:
        """The places that are open in a trace of this call, which fits none of `trees`. cause: why."""
        guards = [tree.guard for tree in trees]
        if missed is not None:
            _, miss = missed
            guards += [child.guard for child in miss.way[-1].after(miss.outcome)]
        changed = frozenset().union(*[guard.changed_numbers(args, kwargs) for guard in guards])
        self._changed |= changed
        if torch.is_grad_enabled() and self._grows_gradients is not False:
            return frozenset()  # autograd keeps numbers as they were
        resized = cause is not None and cause.change is not None and cause.change.kind == "sizes"
        if missed is None and resized and not changed:
            return frozenset()  # a program for all sizes serves one combination of numbers
        return self._changed - self._closed

    def learn(self, captured: Capture) -> None:
        """A call was traced."""
        self._closed |= captured.closed
        if not captured.segments:
            self._closed |= captured.opened
        elif captured.joint is not None:
            self._grows_gradients = True
        elif torch.is_grad_enabled() and self._grows_gradients is None:
            self._grows_gradients = False
