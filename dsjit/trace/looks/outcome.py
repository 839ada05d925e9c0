"""Outcomes: what Python learns about tensors in the middle of a program, and how a compiled run learns it again.

`if t.sum() > 0`, `int(t)`, `t.tolist()` and `x[mask].shape` all look at data. What the code does next depends on what
it sees there, and on nothing else about the data: two runs that see the same outcomes go the same way.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final, TypeAlias

import torch

__all__ = ["SMALLEST", "Outcome", "OutcomeKind", "Size", "describe_outcome", "open_outcome", "read_outcome"]

Outcome: TypeAlias = Any
"""Something hashable."""


SMALLEST: Final = 2
"""The smallest open size, where nothing else is known. Sizes of 0 and 1 are special to every op: they broadcast, are
empty, have free strides."""


class Size(Enum):
    """Stands in the outcome of a look at shapes for a size that is open."""

    OPEN = "1 or more"

    def __repr__(self) -> str:
        return self.value


class OutcomeKind(Enum):
    """What is looked at; the value is how messages call it."""

    TRUTH = "the truth of a tensor"
    INTEGER = "a tensor as an integer"
    NUMBER = "the value of a tensor"
    CONTENT = "the content of a tensor"
    SHAPE = "a shape that depends on data"
    EQUAL = "whether two tensors are equal"


def read_outcome(kind: OutcomeKind, tensors: Sequence[torch.Tensor]) -> Outcome:
    """What Python would see of `tensors`. Floats are told apart by their bits (0.0 is not -0.0, NaN is itself).

    TRUTH, INTEGER and NUMBER look at one tensor of one element, EQUAL at two tensors, CONTENT and SHAPE at any number.
    Where Python would see an exception (a NaN as an integer), its type is the outcome.
    """
    try:
        return _READERS[kind](tensors)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        return type(error)


def open_outcome(outcome: Outcome, dims: Sequence[Sequence[int]]) -> Outcome:
    """The outcome of a look at shapes, with these dimensions of each tensor open, unless they are 0."""
    return tuple(
        [
            tuple([Size.OPEN if dim in free and size else size for dim, size in enumerate(shape)])
            for shape, free in zip(outcome, dims, strict=True)
        ]
    )


def describe_outcome(kind: OutcomeKind, outcome: Outcome) -> str:
    """What was seen, for people, on one line."""
    if isinstance(outcome, type):
        return f"raises {outcome.__name__}"
    if kind is OutcomeKind.NUMBER and isinstance(outcome, bytes):
        parts = struct.unpack(f"<{len(outcome) // 8}d", outcome)
        return repr(parts[0] if len(parts) == 1 else complex(*parts))
    if kind is OutcomeKind.NUMBER and isinstance(outcome, tuple):
        return repr(outcome[1])
    if kind is OutcomeKind.CONTENT and isinstance(outcome, tuple):
        return ", ".join(f"a tensor of shape {shape}" for shape, _ in outcome)
    return repr(outcome)


def _number(tensors: Sequence[torch.Tensor]) -> Outcome:
    number = tensors[0].item()
    if isinstance(number, float):
        return struct.pack("<d", number)
    if isinstance(number, complex):
        return struct.pack("<dd", number.real, number.imag)
    return type(number), number


def _content(tensors: Sequence[torch.Tensor]) -> Outcome:
    return tuple([(tuple(t.shape), t.contiguous().view(-1).view(torch.uint8).numpy().tobytes()) for t in tensors])


_READERS: Final[dict[OutcomeKind, Callable[[Sequence[torch.Tensor]], Outcome]]] = {
    OutcomeKind.TRUTH: lambda tensors: bool(tensors[0]),
    OutcomeKind.INTEGER: lambda tensors: int(tensors[0]),
    OutcomeKind.NUMBER: _number,
    OutcomeKind.CONTENT: _content,
    OutcomeKind.SHAPE: lambda tensors: tuple([tuple(t.shape) for t in tensors]),
    OutcomeKind.EQUAL: lambda tensors: torch.equal(*tensors),
}
