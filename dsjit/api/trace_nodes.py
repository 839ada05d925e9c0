"""The nodes of a trace tree: programs, looks, and what comes after which outcome.

Tensors that programs hand on are known by ids, which are those of one numbering in the whole tree (`api.planting`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from dsjit.api.compile import Compilation
from dsjit.api.training import Training
from dsjit.trace.effects.effects import EffectLine
from dsjit.trace.guards.guard import Guard
from dsjit.trace.looks.outcome import Outcome, open_outcome
from dsjit.trace.looks.segments import Look, Segment
from dsjit.trace.shapes.open_shapes import OpenShapes

__all__ = ["Branch", "Children", "Finish", "Leaf", "Runner", "Step", "fits", "without_history"]

Finish: TypeAlias = Callable[[Any, Any, Any], Any]
Runner: TypeAlias = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Step:
    """A compiled Segment. `run` is its program, or an executor that stands in for it. ahead: of a segment in several
    programs, those that run before the last one."""

    segment: Segment
    compilation: Compilation
    run: Runner
    ahead: tuple[Compilation, ...] = ()

    @property
    def compilations(self) -> tuple[Compilation, ...]:
        """The program's, and those of what runs ahead of it, or those of a forward and its backward."""
        if isinstance(self.run, Training):
            return self.run.compilations
        return (*self.ahead, self.compilation)


def without_history(run: Runner) -> Runner:
    """`run`, in grad mode, without autograd taking notice."""

    def hidden(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        torch._C._set_grad_enabled(False)
        try:
            return run(inputs)
        finally:
            torch._C._set_grad_enabled(True)

    return hidden


@dataclass(slots=True, eq=False)
class Leaf:
    """guard: under which the way to this Leaf was recorded. inputs: ids of the tensors that the guard returns.

    reads: ids of what the program `run` takes, or None when it takes what the guard returns.
    effects: what `finish` does to Python, told in words. sizes: which open sizes it is for; None when there are none.
    """

    guard: Guard
    inputs: tuple[int, ...]
    reads: tuple[int, ...] | None
    step: Step
    run: Runner
    finish: Finish
    effects: tuple[EffectLine, ...]
    sizes: OpenShapes | None = None


@dataclass(slots=True, eq=False)
class Branch:
    """A program, a look, and the node for each outcome (several, when the way on depends on more Python state).

    structure: of the program. made: ids of what its nodes compute, in order.
    reads, exports, looked, drops: ids of what the program takes and gives, of what is looked at, and of what nothing
    wants any more. known: ids of what there is after the look, the caller's tensors apart.
    moves: when Python is here in the state in which it was at another Branch, then `children` are the other one's, and
    this tells what each tensor is called there: (id here, id there). is_head: another Branch does so with this one.
    exits: the same for single outcomes, by outcome: what comes after them is the other one's. numbers: see `Segment`.
    is_settled: whether Python's state is known after it, which then depends on no open size.
    sizes: which open sizes it is for; None when there are none.
    """

    guard: Guard
    inputs: tuple[int, ...]
    step: Step
    look: Look
    structure: Hashable
    made: tuple[int, ...]
    reads: tuple[int, ...]
    exports: tuple[int, ...]
    looked: tuple[int, ...]
    drops: tuple[int, ...]
    known: frozenset[int]
    moves: tuple[tuple[int, int], ...] = ()
    is_head: bool = False
    is_settled: bool = False
    sizes: OpenShapes | None = None
    children: Children = field(default_factory=dict)
    exits: dict[Outcome, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    numbers: tuple[tuple[int, torch.Tensor], ...] = ()

    def hands_on(self) -> tuple[int, ...]:
        """The ids of all that is there after the program, and was not before."""
        return (*self.exports, *[number for number, _ in self.numbers])

    def after(self, outcome: Outcome) -> Sequence[Leaf | Branch]:
        """What may come after an outcome: what is for exact sizes, then what is for open ones."""
        found = self.children.get(outcome, ())
        if self.look.dims and not isinstance(outcome, type):
            opened = open_outcome(outcome, self.look.dims)
            if opened != outcome:
                return [*found, *self.children.get(opened, ())]
        return found

    def forget(self, known: dict[int, torch.Tensor], outcome: Outcome) -> None:
        """After the look: drop what nothing wants, and go by the names that the children use."""
        for dead in self.drops:
            known.pop(dead, None)
        moves = self.exits.get(outcome, self.moves)
        if moves:
            moved = [(then, known.pop(now)) for now, then in moves]
            known.update(moved)

    def names_after(self, outcome: Outcome) -> Mapping[int, int] | None:
        """What the children for this outcome call what is called otherwise here; None when they have the same names."""
        return dict(self.exits[outcome]) if outcome in self.exits else dict(self.moves) or None


Children: TypeAlias = dict[Outcome, list[Leaf | Branch]]


def fits(node: Leaf | Branch, known: Mapping[int, torch.Tensor]) -> bool:
    """Whether a node below the root is for tensors of these sizes."""
    return node.sizes is None or node.sizes.admits([known[number] for number in node.reads or ()])
