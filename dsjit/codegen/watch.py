"""Looks at the memory of a Program after each of its steps, and spoils what no later step may read.

A Program that is assembled with a StepWatch hands over, after every step, the tensors that later steps still want and
those that none does. The latter are filled with bytes that are NaN in every float format and -1 in signed integers, so
that a read of dead memory shows in the result; so is all that the Program owns, before its first step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from dsjit.codegen.placement import Home, Placement, Step
from dsjit.ir.graph import Value

__all__ = ["StepWatch", "watched_values"]

POISON: Final = 0xFF
"""The byte."""


@dataclass(slots=True)
class StepWatch:
    """on_step: is given a step's number and what then is in memory, by Value. live: those Values, by step."""

    on_step: Callable[[int, Mapping[Value, torch.Tensor]], None] | None = None
    live: dict[int, tuple[Value, ...]] = field(default_factory=dict)

    def before_steps(self, owned: Sequence[torch.Tensor]) -> None:
        """The Program begins to use memory of its own: its arena, or a tensor that it made."""
        for tensor in owned:
            _poison(tensor)

    def after_step(self, number: int, live: Sequence[torch.Tensor], dead: Sequence[torch.Tensor]) -> None:
        """A step has run; `dead` was read for the last time."""
        if self.on_step is not None:
            self.on_step(number, dict(zip(self.live[number], live, strict=True)))
        for tensor in dead:
            _poison(tensor)


def watched_values(
    placement: Placement, last_read: Mapping[Value, int], steps: Sequence[Step], number: int
) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """What steps wrote and later ones want, after step `number`; and what was read last in this step, in memory of the
    arena that no other Value has taken over. last_read: see `placement.last_reads`."""
    live: list[Value] = []
    dying: list[Value] = []
    for position, step in enumerate(steps[: number + 1]):
        for value in step.writes:
            last = last_read.get(value, position)
            if last > number or position == number:
                live.append(value)
            elif last == number and placement.places[value].home is Home.ARENA:
                dying.append(value)
    taken = {life.shares for life in placement.buffers if life.start <= number}
    dead = [value for value in dying if placement.places[value].number not in taken]
    return tuple(live), tuple(dead)


def _poison(tensor: torch.Tensor) -> None:
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size)
    flat = torch.as_strided(tensor, (span if tensor.numel() else 0,), (1,))
    flat.view(torch.uint8).fill_(POISON)
