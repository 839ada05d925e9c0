"""What Python computes with floats, as an op on tensors: for functions that no ATen op computes to the same bit."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["compute"]


def compute(function: Callable[..., object], *operands: torch.Tensor | float) -> torch.Tensor:
    """`function` (of `math` or `operator`) of the numbers in these tensors of one element; float64, of no dimension.

    Raises what the function raises, and ArithmeticError when its result is no float (`(-8.0) ** 0.5` is complex).
    """
    result = function(*[operand.item() if isinstance(operand, torch.Tensor) else operand for operand in operands])
    if type(result) is not float:
        raise ArithmeticError(f"{function} gives {result!r}, which is not a float")
    return torch.tensor(result, dtype=torch.float64)
