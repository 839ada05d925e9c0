"""What Python does with floats, as ops on tensors: where no ATen op that takes tensors gives the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["compute", "with_number"]


def compute(function: Callable[..., object], *operands: torch.Tensor | float) -> torch.Tensor:
    """`function` (of `math` or `operator`) of the numbers in these tensors of one element; float64, of no dimension.

    Raises what the function raises, and ArithmeticError when its result is no float (`(-8.0) ** 0.5` is complex).
    """
    result = function(*[operand.item() if isinstance(operand, torch.Tensor) else operand for operand in operands])
    if type(result) is not float:
        raise ArithmeticError(f"{function} gives {result!r}, which is not a float")
    return torch.tensor(result, dtype=torch.float64)


def with_number(op: Callable[..., Any], place: int | str, number: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """`op(*args, **kwargs)` with the number in a tensor of one element as one more argument: at this position, or by
    this name. Raises what the op raises."""
    if isinstance(place, str):
        return op(*args, **kwargs, **{place: number.item()})
    return op(*args[:place], number.item(), *args[place:], **kwargs)
