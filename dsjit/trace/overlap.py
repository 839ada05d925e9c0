"""Whether tensors that a Graph writes share memory with its other inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Overlap"]


def _storage_range(tensor: torch.Tensor) -> tuple[int, int]:
    """First address of the tensor's storage, and the first one behind it (bytes)."""
    storage = tensor.untyped_storage()
    start = storage.data_ptr()
    return start, start + storage.nbytes()


@dataclass(frozen=True, slots=True)
class Overlap:
    """written: positions of the inputs that the Graph writes in place.

    A Graph knows its inputs as values: a write to one is not seen through another. So no input may share its storage
    with a written one (views of one storage that do not touch are refused as well).
    """

    written: frozenset[int]

    def found(self, inputs: Sequence[torch.Tensor]) -> tuple[int, int] | None:
        """Positions of a written input and another one that share memory, or None."""
        ranges = [_storage_range(tensor) for tensor in inputs]
        for position in self.written:
            start, end = ranges[position]
            for other, (other_start, other_end) in enumerate(ranges):
                if other_start < end and start < other_end and other != position:
                    return position, other
        return None
