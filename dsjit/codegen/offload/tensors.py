"""What stands for a tensor that is kept elsewhere, and the order in which such tensors come back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import zip_longest

import torch

__all__ = ["KeptTensor", "TensorInMemory", "read_in_order"]


class KeptTensor(ABC):
    """Stands for a tensor until it is wanted. following: which one will be wanted after it."""

    following: KeptTensor | None = None

    @abstractmethod
    def read_ahead(self) -> None:
        """Begin to bring the tensor back, without waiting for it."""

    @abstractmethod
    def fetch(self) -> torch.Tensor:
        """The tensor, in memory that is the caller's; the next one is on its way then."""


class TensorInMemory(KeptTensor):
    """Stands for a tensor that is there all the same."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def read_ahead(self) -> None:
        pass

    def fetch(self) -> torch.Tensor:
        if self.following is not None:
            self.following.read_ahead()
        return self._tensor


def read_in_order(kept: Sequence[KeptTensor]) -> None:
    """Begin with the first; each that is fetched has the next one read meanwhile."""
    for one, following in zip_longest(kept, kept[1:]):
        one.following = following  # of another backward, one may have followed before
    if kept:
        kept[0].read_ahead()
