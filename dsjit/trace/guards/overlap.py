"""Whether tensors that a Graph writes share memory with its other inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Overlap", "SharedMemory"]


def _storage_range(tensor: torch.Tensor) -> tuple[int, int]:
    """First address of the tensor's storage, and the first one behind it (bytes)."""
    storage = tensor.untyped_storage()
    start = storage.data_ptr()
    return start, start + storage.nbytes()


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """Inputs that are parts of one memory, which is an input itself: in one dimension, behind all others.

    members: their positions. offsets: of each, in elements from the start of the memory. size: of it, in elements.
    """

    members: tuple[int, ...]
    offsets: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], members: Sequence[int]) -> SharedMemory:
        size = tensors[0].untyped_storage().nbytes() // tensors[0].dtype.itemsize
        return cls(tuple(members), tuple([int(tensor.storage_offset()) for tensor in tensors]), size)

    def whole(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """The memory, or None when the inputs lie otherwise."""
        tensors = [inputs[position] for position in self.members]
        if len({tensor.untyped_storage().data_ptr() for tensor in tensors}) != 1:
            return None
        if SharedMemory.of(tensors, self.members) != self:
            return None
        return tensors[0].detach().as_strided((self.size,), (1,), 0)


@dataclass(frozen=True, slots=True)
class Overlap:
    """written: positions of the inputs that the Graph writes in place. shared: memory that inputs are known to share.

    A Graph knows its inputs as values: a write to one is not seen through another. So no input may share its storage
    with a written one (views of one storage that do not touch are refused as well), but where the Graph knows it.
    """

    written: frozenset[int]
    shared: tuple[SharedMemory, ...] = ()

    def found(self, inputs: Sequence[torch.Tensor]) -> tuple[int, int] | None:
        """Positions of a written input and another one that share memory, or None."""
        ranges = [_storage_range(tensor) for tensor in inputs]
        for position in self.written:
            start, end = ranges[position]
            for other, (other_start, other_end) in enumerate(ranges):
                if other_start < end and start < other_end and not self._known(position, other):
                    return position, other
        return None

    def _known(self, position: int, other: int) -> bool:
        return position == other or any(position in s.members and other in s.members for s in self.shared)
