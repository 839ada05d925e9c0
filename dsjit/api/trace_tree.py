"""The trace tree of a jitted function: which program comes after which outcome.

A call walks from the root. At each Branch a program runs, and something is looked at that the user's Python looked
at; the outcome chooses the next node. A Leaf is the end: its program writes what the call writes, and its recipe
makes the result. Nothing that the caller could see happens before the Leaf, so that a call which meets an outcome
that was never seen is simply run again, eagerly and traced, and grows a branch (`grow`).

Most programs look at nothing: their tree is one Leaf. (Trees of traces: Gal and Franz, "Incremental dynamic code
generation with trace trees", 2006.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from dsjit.api.compile import Compilation
from dsjit.api.planting import Names, Planter, Trace
from dsjit.api.trace_nodes import Branch, Leaf, Step, fits
from dsjit.ops.generator import generator_states, put_back
from dsjit.trace.looks.outcome import Outcome, OutcomeKind, read_outcome
from dsjit.trace.looks.segments import Look, Segment

__all__ = ["Miss", "TraceTree", "TreeFull"]

LEAF_LIMIT: Final = 1024
"""Ways through one tree."""

OUTCOME_LIMIT: Final = 16
"""Outcomes of one look at values, contents or shapes (one that sees new ones again and again will go on to), and
nodes for one outcome."""

FREE_GROWTH: Final = 32
HITS_FOR_GROWTH: Final = 4
COST_OF_SIZES: Final = 4
"""What a tree grows by is counted: each Leaf, and each program that it needs and the tree did not have; so many times,
when they were made for open sizes. So much is free; more must have been paid for, each by so many calls that the tree
answered: to trace and compile a way takes as long as several eager calls."""

FREE_WAITS: Final = 16
FREE_WAITS_OF_SIZES: Final = 4
HITS_FOR_A_WAIT_OF_SIZES: Final = 8
"""Misses beyond what was paid for run eagerly, after a walk in vain. When they are so many more than the calls that the
tree answered, it is not worth a walk any more. Programs for open sizes save less than others on the calls that they
answer, so these must be more."""


class TreeFull(Exception):
    """No further branch is worth growing; the message says where and why. by_shape: sizes that depend on data do."""

    def __init__(self, reason: str, look: Look) -> None:
        super().__init__(reason)
        self.reason = reason
        self.source = look.source
        self.by_shape = look.kind is OutcomeKind.SHAPE


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
    leaves, branches: all of them. hits: walks that came to a Leaf. growth: see FREE_GROWTH. waits: see FREE_WAITS.
    full: whether calls that it misses are not worth a trace any more.
    """

    __slots__ = ("_draws", "_names", "branches", "full", "growth", "guard", "hits", "leaf", "leaves", "root", "waits")

    def __init__(self, nodes: Sequence[Leaf | Branch], names: Names) -> None:
        """nodes: all of them, the root first."""
        self.root = nodes[0]
        self.guard = self.root.guard
        self.leaves: list[Leaf] = []
        self.branches: list[Branch] = []
        self.hits = 0
        self.growth = 0
        self.waits = 0
        self.full = False
        self._names = names
        self._draws = False
        self._count(nodes)
        self.leaf = self.root if isinstance(self.root, Leaf) and not self._draws else None

    @classmethod
    def planted(cls, trace: Trace, build: Callable[[Segment], Step]) -> TraceTree:
        """A tree of one way. build: compiles a segment. Raises what it raises."""
        names = Names()
        planter = Planter.after(trace, names, ())
        assert planter is not None
        planted = planter.plant(build)
        assert planted
        return cls(planter.planted, names)

    @property
    def compilations(self) -> tuple[Compilation, ...]:
        """Every program of the tree, once."""
        steps = [*(branch.step for branch in self.branches), *(leaf.step for leaf in self.leaves)]
        found = [compilation for step in steps for compilation in step.compilations]
        return tuple({id(compilation): compilation for compilation in found}.values())

    def walk(self, inputs: Sequence[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The Leaf that the call came to, what its program took and what it returned; or a Miss.

        inputs: what the guard returned. Raises what a program raises; random generators are then as they were.
        """
        if not self._draws:
            return self._follow(inputs, args, kwargs)
        drawn = generator_states()
        try:
            found = self._follow(inputs, args, kwargs)
        except Exception:
            put_back(drawn)
            raise
        if type(found) is Miss:
            put_back(drawn)
        return found

    def _follow(self, inputs: Sequence[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        node: Leaf | Branch = self.root
        known = dict(zip(node.inputs, inputs, strict=True))
        way: list[Branch] = []
        passed = [self.guard]
        leaves = len(self.leaves)
        while isinstance(node, Branch):
            way.append(node)
            if node.exports:
                outputs = node.step.run([known[number] for number in node.reads])
                known.update(zip(node.exports, outputs, strict=True))
            known.update(node.numbers)
            outcome = read_outcome(node.look.kind, [known[number] for number in node.looked])
            node.forget(known, outcome)
            siblings = node.after(outcome)
            for child in siblings:
                if any(child.guard is guard for guard in passed) and fits(child, known):
                    break
            else:
                for child in siblings:
                    more = child.guard.check(args, kwargs)
                    if more is not None:
                        known.update(zip(child.inputs, more, strict=True))
                        passed.append(child.guard)
                        if fits(child, known):
                            break
                else:
                    return Miss(tuple(way), outcome, leaves)
            node = child
        self.hits += 1
        taken = inputs if node.reads is None else [known[number] for number in node.reads]
        return node, taken, node.run(taken)

    def waits_after(self, miss: Miss) -> bool:
        """Whether the call that missed should run eagerly, as more ways have not been paid for yet.

        Raises TreeFull when the ways are seldom the same again.
        """
        if self.growth < FREE_GROWTH + self.hits // HITS_FOR_GROWTH:
            return False
        self.waits += 1
        sized = any(branch.sizes is not None for branch in self.branches)
        free = FREE_WAITS_OF_SIZES + self.hits // HITS_FOR_A_WAIT_OF_SIZES if sized else FREE_WAITS + self.hits
        if self.waits > free:
            ways = len(self.leaves) + self.waits
            raise TreeFull(
                f"what tensors hold led {ways} different ways, and seldom one of them again", miss.way[-1].look
            )
        return True

    def graft(self, miss: Miss, trace: Trace, build: Callable[[Segment], Step]) -> bool:
        """Add what `trace`, which is for exact sizes, does between the end of the walk and where its way joins another
        one, in a tree for open sizes. Returns False when it cannot be known for other sizes. Raises what `build`
        raises.
        """
        if len(self.leaves) >= LEAF_LIMIT or all(branch.sizes is None for branch in miss.way):
            return False
        planter = Planter.after(trace, self._names, miss.way, grafts=True)
        if planter is None:
            return False
        before = len(self.compilations)
        if not planter.graft(build):
            return False
        self._count(planter.planted)
        self.growth += 1 + len(self.compilations) - before
        return True

    def grow(self, miss: Miss, trace: Trace, build: Callable[[Segment], Step]) -> bool:
        """Add the way that `trace` took, after the Branches that it has in common with the walk that missed.

        build: compiles a segment that is new. Returns False when the segments do not start as that walk did, or need
        what its Branches do not hand on. Raises TreeFull when there are too many ways already, and what `build` raises.
        """
        planter = Planter.after(trace, self._names, miss.way)
        if planter is None:
            return False
        last = miss.way[-1]
        look = trace.segments[len(miss.way) - 1].look
        assert look is not None
        siblings = last.children.get(look.outcome, [])
        if len(self.leaves) >= LEAF_LIMIT:
            raise TreeFull(f"what tensors hold led {len(self.leaves)} different ways", look)
        if max(len(last.children), len(siblings)) >= OUTCOME_LIMIT:
            raise TreeFull(f"{look.kind.value} was seen to be {OUTCOME_LIMIT} different things", look)
        if not planter.plant(build):
            return False
        before = len(self.compilations)
        self._count(planter.planted)
        cost = 1 if all(segment.sizes is None for segment in trace.segments) else COST_OF_SIZES
        self.growth += cost * (1 + len(self.compilations) - before)
        return True

    def _count(self, nodes: Iterable[Leaf | Branch]) -> None:
        for node in nodes:
            # A walk that misses, or a program that raises, must give back the random numbers that were drawn.
            self._draws = self._draws or any(each.effect for each in node.step.segment.graph.nodes)
            if isinstance(node, Leaf):
                self.leaves.append(node)
            else:
                self.branches.append(node)
