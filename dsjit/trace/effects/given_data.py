"""Tensors of the caller's whose `.data` a call replaces."""

from __future__ import annotations

import torch

from dsjit.ir.graph import Source
from dsjit.trace.effects.effects import Effect
from dsjit.trace.effects.writes import SetData
from dsjit.trace.reads.notes import Node, Notes
from dsjit.trace.recording.source import SourceFinder

__all__ = ["GivenData"]


class GivenData:
    """Those of one call, of which `notes` know where they are."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._sources = SourceFinder()
        self._met: dict[int, tuple[Node, Source]] = {}

    def meet(self, tensor: torch.Tensor) -> bool:
        """The `.data` of `tensor` is about to be replaced: whether it is known where that is."""
        node = self._notes.node_of(tensor)
        if node is not None:
            self._met[id(tensor)] = node, self._sources.current()
        return node is not None

    def is_empty(self) -> bool:
        """Whether none was met."""
        return not self._met

    def effects(self) -> list[Effect]:
        """What the call left in them: other tensors on the same memory stand for it."""
        return [
            Effect(node.path, "metadata", "data", node.obj, SetData(), node.obj.detach(), source)
            for node, source in self._met.values()
        ]
