"""What the arguments of a call of an op hold, and what it returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["tensors_in", "tensors_returned"]


def tensors_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors among them, and in lists among them."""
    flat = [item for arg in (*args, *kwargs.values()) for item in (arg if isinstance(arg, list | tuple) else (arg,))]
    return [item for item in flat if isinstance(item, torch.Tensor)]


def tensors_returned(result: Any, tells_sizes: bool) -> Any:
    """A list of the results where the op returns one tensor, or sizes beside tensors (None stands for each size: guards
    know of them already); else what it returned."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [None if isinstance(item, int) else item for item in result] if tells_sizes else result
