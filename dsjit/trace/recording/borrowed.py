"""Constants of a trace that lie in memory of others (an array of numpy's), who may write to it without being seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dsjit.trace.recording.memory import CannotTrace, Storage

__all__ = ["BorrowedMemory"]


class BorrowedMemory:
    """That of one trace."""

    def __init__(self) -> None:
        self._found: list[tuple[Storage, torch.Tensor, torch.Tensor]] = []

    def meet(self, tensor: torch.Tensor, storage: Storage, content: torch.Tensor) -> None:
        """A tensor was made of numbers; `content` is a copy."""
        if not tensor.untyped_storage().resizable():
            self._found.append((storage, content, tensor.detach()))

    def check(self, items: Sequence[object]) -> None:
        """After the run: nobody wrote to it, and none of `items`, which the call hands out, lies there. Raises
        CannotTrace."""
        for storage, content, tensor in self._found:
            changed = storage.version or not torch.equal(_bytes_of(content), _bytes_of(tensor))
            memory = tensor.untyped_storage()._cdata
            if changed or any(isinstance(t, torch.Tensor) and t.untyped_storage()._cdata == memory for t in items):
                raise CannotTrace("memory that is shared with an array of numpy's is written or handed out")


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)
