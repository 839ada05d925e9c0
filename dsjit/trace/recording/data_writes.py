"""What `tensor.data = other` means for memory as the recorder sees it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsjit.trace.recording.memory import CannotTrace, Memory

__all__ = ["DataWrites"]

_PLAIN = (torch.Tensor, torch.nn.Parameter)


class DataWrites:
    """may_set: is told of a tensor of the caller's whose `.data` is replaced: whether each call can do that."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.may_set: Callable[[torch.Tensor], bool] = lambda tensor: False

    def on_data(self, tensor: torch.Tensor, data: torch.Tensor, done: bool) -> None:
        """`data` becomes the data of `tensor`, or has become it. Raises CannotTrace."""
        memory = self._memory
        if done:
            memory.give_data(tensor, data)
        elif type(data) not in _PLAIN or type(tensor) not in _PLAIN:
            raise CannotTrace("the .data of a tensor subclass is replaced")
        elif not memory.is_made(tensor):
            memory.read(tensor)  # what it held is an input, if it can be one
            if memory.is_written(tensor) or not self.may_set(tensor):
                raise CannotTrace("the .data of a tensor is replaced, whose memory was written or has other users")
