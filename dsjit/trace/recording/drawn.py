"""Random generators that the caller owns: what a call draws from them, as a function of their state.

The state goes into the Graph as an input, from one draw to the next as a Value, and back into the generator when the
call has ended. So a call that goes another way, or fails, has drawn nothing, and the same program serves any generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dsjit.ir.graph import Node, Value
from dsjit.ops.calls import draw
from dsjit.trace.reads.notes import Notes
from dsjit.trace.reads.paths import Asked
from dsjit.trace.recording.memory import CannotTrace, Memory

__all__ = ["Drawn", "DrawnGenerators", "StateOf", "met_state"]

StateOf = Callable[[torch.Generator], tuple[torch.Generator, torch.Tensor] | None]
"""A generator as the caller has it, and its state as an input tensor; None when it was made in the call."""


@dataclass(slots=True, eq=False)
class Drawn:
    """A generator of the caller's, and its state by now."""

    generator: torch.Generator
    state: Value


class DrawnGenerators:
    """The generators of one trace."""

    def __init__(self, memory: Memory, state_of: StateOf) -> None:
        self._memory = memory
        self._state_of = state_of
        self._drawn: dict[int, Drawn] = {}

    def argument(self, generator: torch.Generator) -> Drawn:
        """What stands for `generator` among the arguments of a node until `replace` was called."""
        drawn = self._drawn.get(_identity(generator))
        if drawn is None:
            met = self._state_of(generator)
            if met is None:
                raise CannotTrace("a torch.Generator that was made in the call is used")
            drawn = self._drawn[_identity(generator)] = Drawn(met[0], self._memory.read(met[1]))
        return drawn

    @property
    def drawn(self) -> tuple[Value, ...]:
        """The states that the generators are in by now."""
        return tuple([drawn.state for drawn in self._drawn.values()])

    def replace(self, start: int) -> None:
        """Let the nodes from `start` on, where they take a generator, take its state and give the next one."""
        nodes = self._memory.nodes
        for position in range(start, len(nodes) if self._drawn else start):
            node = nodes[position]
            drawn = node.kwargs.get("generator")
            if any(isinstance(arg, Drawn) for arg in node.args):
                raise CannotTrace(f"{node.op} takes a generator by position")
            if isinstance(drawn, Drawn):
                kwargs = {name: arg for name, arg in node.kwargs.items() if name != "generator"}
                before, drawn.state = drawn.state, self._memory.fresh(drawn.state.type)
                own = len(node.outputs) - len(node.mutates)
                outputs = (*node.outputs[:own], drawn.state, *node.outputs[own:])
                mutates = tuple([number + 2 for number in node.mutates])
                nodes[position] = Node(draw, (node.op, before, *node.args), kwargs, outputs, node.source, mutates)

    def states_left(self) -> tuple[tuple[torch.Generator, torch.Tensor], ...]:
        """The generators, and the states that the run left them in, which are results of the Graph from now on."""
        found: list[tuple[torch.Generator, torch.Tensor]] = []
        for drawn in self._drawn.values():
            state = drawn.generator.get_state()
            self._memory.remember_root(state, drawn.state)
            found.append((drawn.generator, state))
        return tuple(found)


def met_state(notes: Notes, generator: torch.Generator) -> tuple[torch.Generator, torch.Tensor] | None:
    """As `StateOf`: the state is noted, so that guards find it."""
    # ATen hands on the generator, not always the object that the user has.
    nodes = (node for node in notes.nodes.values() if type(node.obj) is torch.Generator)
    node = next((node for node in nodes if _identity(node.obj) == _identity(generator)), None)
    if node is None:
        return None
    step = Asked("get_state", torch.Generator.get_state, ())
    state: torch.Tensor = step.get(node.obj)
    notes.note(node, step, state)
    return node.obj, state


def _identity(generator: Any) -> int:
    """The address of what is behind a `torch.Generator`."""
    return int(generator._cdata)
