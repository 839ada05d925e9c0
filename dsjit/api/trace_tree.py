"""The trace tree of a jitted function: which program comes after which outcome.

A call walks from the root. At each Branch a program runs, and something is looked at that the user's Python looked
at; the outcome chooses the next node. A Leaf is the end: its program writes what the call writes, and its recipe
makes the result. Nothing that the caller could see happens before the Leaf, so that a call which meets an outcome
that was never seen is simply run again, eagerly and traced, and grows a branch (`grow`).

Most programs look at nothing: their tree is one Leaf. (Trees of traces: Gal and Franz, "Incremental dynamic code
generation with trace trees", 2006.)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import torch

from dsjit.api.compile import Compilation
from dsjit.api.training import Training
from dsjit.ir.graph import TensorType, Value
from dsjit.ir.structure_graph import graph_structure
from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.trace.effects import EffectLine
from dsjit.trace.guards import Guard
from dsjit.trace.outcome import Outcome, OutcomeKind, read_outcome
from dsjit.trace.segments import Look, Segment

__all__ = ["Branch", "End", "Leaf", "Miss", "Step", "TraceTree", "TreeFull", "plant"]

LEAF_LIMIT: Final = 1024
"""Ways through one tree."""

OUTCOME_LIMIT: Final = 16
"""Outcomes of one look at values, contents or shapes (one that sees new ones again and again will go on to), and
nodes for one outcome."""

FREE_GROWTH: Final = 32
HITS_FOR_GROWTH: Final = 4
"""What a tree grows by is counted: each Leaf, and each program that it needs and the tree did not have. So much is
free; more must have been paid for, each by so many calls that the tree answered: to trace and compile a way takes as
long as several eager calls."""

_SOME_SHAPE: Final = TensorType((), torch.bool, (), torch.device("meta"))
"""Stands for the types of tensors whose shape depends on data."""

Finish: TypeAlias = Callable[[Any, Any, Any], Any]
Runner: TypeAlias = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


class TreeFull(Exception):
    """No further branch is worth growing; the message says where and why. by_shape: sizes that depend on data do."""

    def __init__(self, reason: str, look: Look) -> None:
        super().__init__(reason)
        self.reason = reason
        self.source = look.source
        self.by_shape = look.kind is OutcomeKind.SHAPE


@dataclass(frozen=True, slots=True)
class Step:
    """A compiled Segment. `run` is its program, or an executor that stands in for it."""

    segment: Segment
    compilation: Compilation
    run: Runner

    @property
    def compilations(self) -> tuple[Compilation, ...]:
        """The program's, and those of its backward."""
        return self.run.compilations if isinstance(self.run, Training) else (self.compilation,)


@dataclass(slots=True, eq=False)
class Leaf:
    """guard: under which the way to this Leaf was recorded. inputs: ids of the tensors that the guard returns.

    reads: ids of what the program `run` takes, or None when it takes what the guard returns.
    effects: what `finish` does to Python, told in words.
    """

    guard: Guard
    inputs: tuple[int, ...]
    reads: tuple[int, ...] | None
    step: Step
    run: Runner
    finish: Finish
    effects: tuple[EffectLine, ...]


@dataclass(frozen=True, slots=True)
class End:
    """How a call ends: what makes its result, and its effects in words."""

    finish: Finish
    effects: tuple[EffectLine, ...]


@dataclass(slots=True, eq=False)
class Branch:
    """A program, a look, and the node for each outcome (several, when the way on depends on more Python state).

    reads, exports, looked, drops: ids of what the program takes and gives, of what is looked at, and of what nothing
    wants any more.
    """

    guard: Guard
    inputs: tuple[int, ...]
    step: Step
    look: Look
    structure: Hashable
    children: dict[Outcome, list[Leaf | Branch]] = field(default_factory=dict)
    reads: tuple[int, ...] = field(init=False)
    exports: tuple[int, ...] = field(init=False)
    looked: tuple[int, ...] = field(init=False)
    drops: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        segment = self.step.segment
        self.reads, self.exports, self.drops = segment.reads, segment.exports, segment.drops
        self.looked = tuple([value.id for value in self.look.values])


@dataclass(frozen=True, slots=True)
class Miss:
    """A walk met an outcome without a fitting branch. way: the Branches that it passed; the last one lacks it.

    leaves: how many the tree had when the walk began.
    """

    way: tuple[Branch, ...]
    outcome: Outcome
    leaves: int


class TraceTree:
    """A tree with the guard of the call that planted it. Not thread-safe to grow; walking while it grows is safe.

    leaf: the root, if it is a Leaf that draws no random numbers: a call may run it without a walk.
    leaves, branches: all of them. hits: walks that came to a Leaf. growth: see FREE_GROWTH.
    full: whether calls that it misses are not worth a trace any more.
    """

    __slots__ = ("_draws", "branches", "full", "growth", "guard", "hits", "leaf", "leaves", "root")

    def __init__(self, root: Leaf | Branch) -> None:
        self.root = root
        self.guard = root.guard
        self.leaves: list[Leaf] = []
        self.branches: list[Branch] = []
        self.hits = 0
        self.growth = 0
        self.full = False
        self._draws = False
        self._count(root)
        self.leaf = root if isinstance(root, Leaf) and not self._draws else None

    @property
    def compilations(self) -> tuple[Compilation, ...]:
        """Every program of the tree, once."""
        steps = [*(branch.step for branch in self.branches), *(leaf.step for leaf in self.leaves)]
        found = [compilation for step in steps for compilation in step.compilations]
        return tuple({id(compilation): compilation for compilation in found}.values())

    def walk(self, inputs: Sequence[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The Leaf that the call came to, what its program took and what it returned; or a Miss.

        inputs: what the guard returned. Raises what a program raises; the random generator is then as it was before.
        """
        if not self._draws:
            return self._follow(inputs, args, kwargs)
        drawn = generator_state()
        try:
            found = self._follow(inputs, args, kwargs)
        except Exception:
            set_generator_state(drawn)
            raise
        if type(found) is Miss:
            set_generator_state(drawn)
        return found

    def _follow(self, inputs: Sequence[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        node: Leaf | Branch = self.root
        guard = self.guard
        known = dict(zip(node.inputs, inputs, strict=True))
        way: list[Branch] = []
        leaves = len(self.leaves)
        while isinstance(node, Branch):
            way.append(node)
            if node.exports:
                outputs = node.step.run([known[number] for number in node.reads])
                known.update(zip(node.exports, outputs, strict=True))
            outcome = read_outcome(node.look.kind, [known[number] for number in node.looked])
            for dead in node.drops:
                known.pop(dead, None)
            for child in node.children.get(outcome, ()):
                if child.guard is guard:
                    break
                more = child.guard.check(args, kwargs)
                if more is not None:
                    guard = child.guard
                    known.update(zip(child.inputs, more, strict=True))
                    break
            else:
                return Miss(tuple(way), outcome, leaves)
            node = child
        self.hits += 1
        taken = inputs if node.reads is None else [known[number] for number in node.reads]
        return node, taken, node.run(taken)

    def grow(
        self,
        miss: Miss,
        guard: Guard,
        inputs: tuple[int, ...],
        segments: Sequence[Segment],
        build: Callable[[Segment], Step],
        end: End,
    ) -> bool:
        """Add the way that `segments` took, after the Branches that it has in common with the walk that missed.

        build: compiles a segment that is new. Returns False when the segments do not start as that walk did, or need
        what its Branches do not hand on. Raises TreeFull when there are too many ways already, and what `build` raises.
        """
        last = miss.way[-1]
        if len(segments) <= len(miss.way):
            return False
        known = {*self.root.inputs, *inputs}
        for branch, segment in zip(miss.way, segments, strict=False):
            if branch.structure != _structure(segment) or not _looks_alike(branch.look, segment.look):
                return False
            known.update(branch.exports)
            known.difference_update(branch.drops)
        look = segments[len(miss.way) - 1].look
        rest = segments[len(miss.way) :]
        assert look is not None
        if not _can_start(rest, known):
            return False
        siblings = last.children.get(look.outcome, [])
        ways = len(self.leaves)
        if ways >= LEAF_LIMIT or self.growth >= FREE_GROWTH + self.hits // HITS_FOR_GROWTH:
            raise TreeFull(f"what tensors hold led {ways} different ways, and seldom one of them again", look)
        if max(len(last.children), len(siblings)) >= OUTCOME_LIMIT:
            raise TreeFull(f"{look.kind.value} was seen to be {OUTCOME_LIMIT} different things", look)
        node = plant(guard, inputs, rest, build, end, whole=False)
        last.children[look.outcome] = [*siblings, node]
        before = len(self.compilations)
        self._count(node)
        self.growth += 1 + len(self.compilations) - before
        return True

    def _count(self, node: Leaf | Branch) -> None:
        stack: list[Leaf | Branch] = [node]
        while stack:
            node = stack.pop()
            # A walk that misses, or a program that raises, must give back the random numbers that were drawn.
            self._draws = self._draws or any(each.effect for each in node.step.segment.graph.nodes)
            if isinstance(node, Leaf):
                self.leaves.append(node)
                continue
            self.branches.append(node)
            stack.extend(child for children in node.children.values() for child in children)


def plant(
    guard: Guard,
    inputs: tuple[int, ...],
    segments: Sequence[Segment],
    build: Callable[[Segment], Step],
    end: End,
    whole: bool = True,
) -> Leaf | Branch:
    """The nodes for `segments`, one after the other. whole: they are a whole run, from its beginning."""
    *before, last = segments
    step = build(last)
    reads = None if whole and not before else last.reads
    node: Leaf | Branch = Leaf(guard, inputs, reads, step, step.run, end.finish, end.effects)
    for segment in reversed(before):
        assert segment.look is not None
        branch = Branch(guard, inputs, build(segment), segment.look, _structure(segment))
        branch.children[segment.look.outcome] = [node]
        node = branch
    return node


def _structure(segment: Segment) -> Hashable:
    """The key of what a segment does, whatever its look sees: a shape that depends on data is what is looked at."""
    graph, look = segment.graph, segment.look
    if look is not None and look.kind is OutcomeKind.SHAPE:
        *nodes, last = graph.nodes
        unknown = tuple([Value(value.id, _SOME_SHAPE) for value in last.outputs])
        graph = replace(graph, nodes=(*nodes, replace(last, outputs=unknown)))
    return graph_structure(graph, with_ids=True)


def _looks_alike(a: Look, b: Look | None) -> bool:
    """Whether two looks are the same one, whatever was seen."""
    same = b is not None and a.kind is b.kind and a.source == b.source
    return same and b is not None and [v.id for v in a.values] == [v.id for v in b.values]


def _can_start(segments: Sequence[Segment], known: set[int]) -> bool:
    """Whether everything that the segments read is there: in `known`, or handed on by one of themselves."""
    there = set(known)
    for segment in segments:
        if not there.issuperset(segment.reads):
            return False
        there.update(segment.exports)
    return True
