"""What the arguments of a call of an op hold, and what it returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["lists_are_on_cpu", "tensors_in", "tensors_returned"]


def tensors_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors among them, and in lists among them."""
    flat = [item for arg in (*args, *kwargs.values()) for item in (arg if isinstance(arg, list | tuple) else (arg,))]
    return [item for item in flat if isinstance(item, torch.Tensor)]


def lists_are_on_cpu(args: Sequence[Any]) -> bool:
    """Whether the lists of tensors among them are on the CPU, whose kernels take them one by one."""
    lists = [arg for arg in args if isinstance(arg, list | tuple)]
    return all(tensor.device.type == "cpu" for tensor in tensors_in(lists, {}))


def tensors_returned(result: Any, tells_sizes: bool) -> Any:
    """A list of the results where the op returns one tensor, or sizes beside tensors (None stands for each size: guards
    know of them already); else what it returned."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [None if isinstance(item, int) else item for item in result] if tells_sizes else result
