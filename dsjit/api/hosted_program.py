"""A Program of a GPU for which the host computes numbers first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dsjit.codegen.program import Program
from dsjit.passes.split_host import HostSplit

__all__ = ["HostedProgram", "hosted_program"]


@dataclass(frozen=True, slots=True)
class HostedProgram:
    """host, device: what runs first, and then.

    taken: numbers of the inputs that `host` takes. passed: of what `device` takes, among the inputs and, behind them,
        what `host` made. returned: of the results, among those of `device` and, behind them, what `host` made.
    written: by the host's results, as (number of the input, number of the result, whether autograd counts it).
    """

    host: Program
    device: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
    taken: tuple[int, ...]
    passed: tuple[int, ...]
    returned: tuple[int, ...]
    written: tuple[tuple[int, int, bool], ...]

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As `Program.__call__`. What the host writes is written when all the rest has been queued."""
        made = self.host([inputs[number] for number in self.taken])
        everything = [*inputs, *made]
        found = [*self.device([everything[number] for number in self.passed]), *made]
        for place, number, counted in self.written:
            target = inputs[place]
            (target if counted else target.data).copy_(made[number])
        return [found[number] for number in self.returned]


def hosted_program(
    split: HostSplit, host: Program, device: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
) -> HostedProgram:
    """host, device: of the parts."""
    graph = split.whole
    places = {value: number for number, value in enumerate((*graph.inputs, *split.host.outputs))}
    results = {value: number for number, value in enumerate((*split.device.outputs, *split.host.outputs))}
    made = {value: number for number, value in enumerate(split.host.outputs)}
    return HostedProgram(
        host,
        device,
        tuple([places[value] for value in split.host.inputs]),
        tuple([places[value] for value in split.device.inputs]),
        tuple([results[value] for value in graph.outputs]),
        tuple([(places[write.target], made[write.value], write.counted) for write in split.written]),
    )
