"""What Python does with numbers, as ops on tensors: where no ATen op that takes tensors gives the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

__all__ = ["compute", "is_int64", "with_number"]


_DTYPES: Final[dict[type, torch.dtype]] = {float: torch.float64, int: torch.int64, bool: torch.bool}


def compute(kind: type, function: Callable[..., object], *operands: torch.Tensor | float) -> torch.Tensor:
    """`function` (of `math`, `operator`, `builtins`) of the numbers in these tensors of one element; of no dimension.

    kind: the type of the result: float (float64), int (int64) or bool. Raises what the function raises, and
    ArithmeticError when the result is of another type (`(-8.0) ** 0.5` is complex) or no int64.
    """
    result = function(*[operand.item() if isinstance(operand, torch.Tensor) else operand for operand in operands])
    if type(result) is not kind:
        raise ArithmeticError(f"{function} gives {result!r}, which is no {kind.__name__}")
    if isinstance(result, int) and not is_int64(result):
        raise ArithmeticError(f"{function} gives {result!r}, which is no int64")
    return torch.tensor(result, dtype=_DTYPES[kind])


def is_int64(number: int) -> bool:
    """Whether an int is one that an int64 tensor can hold."""
    return -(1 << 63) <= number < 1 << 63


def with_number(op: Callable[..., Any], place: int | str, number: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """`op(*args, **kwargs)` with the number in a tensor of one element as one more argument: at this position, or by
    this name. Raises what the op raises."""
    if isinstance(place, str):
        return op(*args, **kwargs, **{place: number.item()})
    return op(*args[:place], number.item(), *args[place:], **kwargs)
