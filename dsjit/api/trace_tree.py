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
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch

from dsjit.api.compile import Compilation
from dsjit.ir.graph import Source
from dsjit.ir.structure_graph import graph_structure
from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.trace.guards import Guard
from dsjit.trace.outcome import Outcome, read_outcome
from dsjit.trace.segments import Look, Segment

__all__ = ["Branch", "Leaf", "Miss", "Step", "TraceTree", "TreeFull", "plant"]

LEAF_LIMIT: Final = 1024
"""Ways through one tree."""

OUTCOME_LIMIT: Final = 16
"""Outcomes of one look at values, contents or shapes (one that sees new ones again and again will go on to), and
nodes for one outcome."""

Finish: TypeAlias = Callable[[Any, Any, Any], Any]
Runner: TypeAlias = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


class TreeFull(Exception):
    """No further branch is worth growing; the message says where and why."""

    def __init__(self, reason: str, source: Source) -> None:
        super().__init__(reason)
        self.reason = reason
        self.source = source


@dataclass(frozen=True, slots=True)
class Step:
    """A compiled Segment. `run` is its program, or an executor that stands in for it."""

    segment: Segment
    compilation: Compilation
    run: Runner


@dataclass(slots=True, eq=False)
class Leaf:
    """guard: under which the way to this Leaf was recorded. inputs: ids of the tensors that the guard returns.

    reads: ids of what the program `run` takes, or None when it takes what the guard returns.
    """

    guard: Guard
    inputs: tuple[int, ...]
    reads: tuple[int, ...] | None
    step: Step
    run: Runner
    finish: Finish


@dataclass(slots=True, eq=False)
class Branch:
    """A program, a look, and the node for each outcome (several, when the way on depends on more Python state)."""

    guard: Guard
    inputs: tuple[int, ...]
    step: Step
    look: Look
    structure: Hashable
    children: dict[Outcome, list[Leaf | Branch]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Miss:
    """A walk met an outcome without a fitting branch. way: the Branches that it passed; the last one lacks it."""

    way: tuple[Branch, ...]


class TraceTree:
    """A tree with the guard of the call that planted it. Not thread-safe to grow; walking while it grows is safe.

    leaf: the root, if it is a Leaf. leaves, branches: all of them.
    """

    __slots__ = ("_draws", "branches", "guard", "leaf", "leaves", "root")

    def __init__(self, root: Leaf | Branch) -> None:
        self.root = root
        self.guard = root.guard
        self.leaf = root if isinstance(root, Leaf) else None
        self.leaves: list[Leaf] = []
        self.branches: list[Branch] = []
        self._draws = False
        self._count(root)

    @property
    def compilations(self) -> tuple[Compilation, ...]:
        """Every program of the tree, once."""
        steps = [*(branch.step for branch in self.branches), *(leaf.step for leaf in self.leaves)]
        return tuple({id(step.compilation): step.compilation for step in steps}.values())

    def walk(self, inputs: Sequence[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of the call, or a Miss; `inputs` are what the guard returned."""
        drawn = generator_state() if self._draws else None
        node: Leaf | Branch = self.root
        guard = self.guard
        known = dict(zip(node.inputs, inputs, strict=True))
        way: list[Branch] = []
        while isinstance(node, Branch):
            way.append(node)
            segment = node.step.segment
            graph = segment.graph
            if graph.outputs:
                outputs = node.step.run([known[value.id] for value in graph.inputs])
                known.update(zip(segment.exports, outputs, strict=True))
            outcome = read_outcome(node.look.kind, [known[value.id] for value in node.look.values])
            for dead in segment.drops:
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
                if drawn is not None:
                    set_generator_state(drawn)
                return Miss(tuple(way))
            node = child
        taken = inputs if node.reads is None else [known[number] for number in node.reads]
        return node.finish(taken, node.run(taken), (args, kwargs))

    def grow(
        self,
        miss: Miss,
        guard: Guard,
        inputs: tuple[int, ...],
        segments: Sequence[Segment],
        build: Callable[[Segment], Step],
        finish: Finish,
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
            known.update(branch.step.segment.exports)
            known.difference_update(branch.step.segment.drops)
        look = segments[len(miss.way) - 1].look
        rest = segments[len(miss.way) :]
        assert look is not None
        if not _can_start(rest, known):
            return False
        siblings = last.children.get(look.outcome, [])
        if len(self.leaves) >= LEAF_LIMIT:
            raise TreeFull(f"what tensors hold led {LEAF_LIMIT} different ways", look.source)
        if max(len(last.children), len(siblings)) >= OUTCOME_LIMIT:
            raise TreeFull(f"{look.kind.value} was seen to be {OUTCOME_LIMIT} different things", look.source)
        node = plant(guard, inputs, rest, build, finish, whole=False)
        last.children[look.outcome] = [*siblings, node]
        self._count(node)
        return True

    def _count(self, node: Leaf | Branch) -> None:
        stack: list[Leaf | Branch] = [node]
        while stack:
            node = stack.pop()
            if isinstance(node, Leaf):
                self.leaves.append(node)
                continue
            self.branches.append(node)
            # A Leaf draws when everything is decided; before it, a walk that misses must give back what it drew.
            self._draws = self._draws or any(each.effect for each in node.step.segment.graph.nodes)
            stack.extend(child for children in node.children.values() for child in children)


def plant(
    guard: Guard,
    inputs: tuple[int, ...],
    segments: Sequence[Segment],
    build: Callable[[Segment], Step],
    finish: Finish,
    whole: bool = True,
) -> Leaf | Branch:
    """The nodes for `segments`, one after the other. whole: they are a whole run, from its beginning."""
    *before, last = segments
    step = build(last)
    node: Leaf | Branch = Leaf(guard, inputs, None if whole and not before else last.reads, step, step.run, finish)
    for segment in reversed(before):
        assert segment.look is not None
        branch = Branch(guard, inputs, build(segment), segment.look, _structure(segment))
        branch.children[segment.look.outcome] = [node]
        node = branch
    return node


def _structure(segment: Segment) -> Hashable:
    return graph_structure(segment.graph, with_ids=True)


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
