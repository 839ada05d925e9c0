"""What a compiled call does after its last program: it makes the result, and does to Python what the traced call did.

First everything is found and made (the objects of before by their paths, new objects by templates, tensors from the
run's own outputs); then prints, log records and warnings are told again, in order; then the state is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from dsjit.ops.strided import StridedView, strided_view
from dsjit.trace.effects.events import Event
from dsjit.trace.effects.outputs import Fixed, Hole, Template, build_template
from dsjit.trace.effects.writes import Write
from dsjit.trace.reads.facts import ARGS_SLOT
from dsjit.trace.reads.paths import Step

__all__ = ["HELD", "Location", "Recipe", "Returned", "ReturnedSize"]

HELD: Final = -1

_SPENT: Final = (
    "Trying to backward through the graph a second time (or directly access saved tensors after they have already been "
    "freed). Saved intermediate values of the graph are freed when you call .backward() or autograd.grad(). Specify "
    "retain_graph=True if you need to backward through the graph a second time or if you need to access saved tensors "
    "after calling backward."
)
"""What eager raises (torch/csrc/autograd/saved_variable.cpp)."""


@dataclass(frozen=True, slots=True)
class Returned:
    """How one tensor is obtained: from input or output number `number` of the last segment's Graph, whole or as a
    strided view; detached from an input that may require a gradient. spent: it requires a gradient, but the call has
    run the backward of its graph, so that another one raises."""

    from_input: bool
    number: int
    view: StridedView | None
    detached: bool = False
    spent: bool = False

    def fetch(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        tensor = (inputs if self.from_input else outputs)[self.number]
        if self.view is not None:
            # The traced code chose its own grad mode, whatever that of the call.
            with torch.set_grad_enabled(tensor.requires_grad and not self.detached):
                tensor = strided_view(tensor, *self.view)
        if self.spent:
            with torch.enable_grad():
                spent: torch.Tensor = torch._C._functions.DelayedError(_SPENT, 1)(tensor.detach().requires_grad_())
                return spent
        return tensor.detach() if self.detached else tensor


@dataclass(frozen=True, slots=True)
class ReturnedSize:
    """A size that the call hands out."""

    size: int

    def fetch(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> Any:
        return self.size


@dataclass(frozen=True, slots=True)
class Location:
    """Where an object from before the call is found: by steps from `args` or `kwargs` (`slot` tells), or from `root`,
    which the guard holds itself (HELD)."""

    slot: int
    root: Any
    steps: tuple[Step, ...]

    def fetch(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        found = self.root if self.slot == HELD else args if self.slot == ARGS_SLOT else kwargs
        for step in self.steps:
            found = step.get(found)
        return found


@dataclass(frozen=True, slots=True)
class Recipe:
    """returned, found: the tensors and the objects of before that the templates refer to by number.

    events: what is told, with the list of its values. writes: with the number of the object in `found`, and the value.
    """

    result: Template
    returned: tuple[Returned | ReturnedSize, ...]
    found: tuple[Location, ...]
    events: tuple[tuple[Event, Template], ...] = ()
    writes: tuple[tuple[Write, int, Template], ...] = ()

    @property
    def first_output(self) -> bool:
        """Whether the result is the first output of the last segment's Graph, and nothing else is to do."""
        only = self.returned == (Returned(False, 0, None),) and self.result == Hole(0)
        return only and not self.events and not self.writes

    def make(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], call: Any) -> Any:
        """Only the result."""
        tensors = [each.fetch(inputs, outputs) for each in self.returned]
        return build_template(self.result, tensors, [each.fetch(*call) for each in self.found], {})

    def finish(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], call: Any) -> Any:
        """Do it, and return the result. call: the arguments and keyword arguments."""
        tensors = [each.fetch(inputs, outputs) for each in self.returned]
        args, kwargs = call
        found = [each.fetch(args, kwargs) for each in self.found]
        made: dict[int, Any] = {}
        result = build_template(self.result, tensors, found, made)
        told = [(event, build_template(values, tensors, found, made)) for event, values in self.events]
        written = [
            (write, found[owner], value.value if type(value) is Fixed else build_template(value, tensors, found, made))
            for write, owner, value in self.writes
        ]
        for event, values in told:
            event.tell(values)
        for write, owner, value in written:
            write.apply(owner, value)
        return result
