"""Planting: how the segments of a traced call become nodes of a trace tree.

The Values of each trace have ids of their own. In the tree, what a program computes has the id that it got when the
program was planted; a later trace that comes by is followed, and its ids are translated. Inputs have one id for each
path at which the guard finds them.

*Loops and joins.* At some looks, a trace knows Python's state (`trace.looks.python_state`). When it is the state of an
earlier look of the same trace, but for the names of tensors, then what comes next is what came next there, for each
outcome, seen or not: Python is deterministic, and has nothing else to go by. So the new Branch shares the children of
the earlier one, the *head* of the loop, and renames the tensors. The rest of the trace is followed through these
children: rounds that are there are not planted again, and what comes after the loop is planted once for all numbers of
rounds. The same goes for a look of another trace that came there by another way: after an `if`, the ways join.

*Exits.* Where the state is known that an outcome leaves, which ends a `for` loop, what comes after this outcome is
shared: a loop over layers that are all different needs no trace for each number of layers after which it stops.

*Grafts.* Where sizes that depend on data are open, a trace is planted after it was rehearsed for other sizes, which
takes several times as long. A state that is known depends on none of them. So when a walk ended at such a state, with
an outcome that is no open size, what comes next is the same for all sizes, as far as the next such state: it is planted
as it was traced, if it ends where the ways join.

What the children read has to be there whichever way they are reached. So a head hands on nothing but what the state
consists of; when something that was planted below it needs more, no loop or join is made.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Final

import torch

from dsjit.api.trace_nodes import Branch, Children, Finish, Leaf, Step
from dsjit.ir.graph import Graph, TensorType, Value
from dsjit.ir.structure_graph import constant_digest, graph_structure
from dsjit.trace.effects.effects import EffectLine
from dsjit.trace.guards.guard import Guard
from dsjit.trace.looks.outcome import Outcome, OutcomeKind, open_outcome
from dsjit.trace.looks.segments import Look, Segment, State

__all__ = ["Names", "Planter", "Trace"]

_SOME_SHAPE: Final = TensorType((), torch.bool, (), torch.device("meta"))
"""Stands for the types of tensors whose shape depends on data."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A traced call. inputs: ids and places of the tensors that `guard` returns, in order. finish: makes the result,
    and does to Python what `effects` tell in words."""

    guard: Guard
    inputs: tuple[tuple[int, Hashable], ...]
    segments: tuple[Segment, ...]
    finish: Finish
    effects: tuple[EffectLine, ...]


class Names:
    """The ids of one tree. inputs: those of inputs, by place. joins: the Branch that was the first one in a state that
    other traces may come to, by its key, with the ids that the state consists of. exits: by the key of the state that
    an outcome of theirs leaves, Branches that could share what comes after it."""

    def __init__(self) -> None:
        self.inputs: dict[Hashable, int] = {}
        self.joins: dict[Hashable, tuple[Branch, tuple[int, ...]]] = {}
        self.exits: dict[Hashable, list[_Exit]] = {}
        self._count = 0

    def fresh(self) -> int:
        self._count += 1
        return self._count

    def of_inputs(self, trace: Trace) -> dict[int, int]:
        """By the ids of the trace, those of the tree."""
        for _, path in trace.inputs:
            if path not in self.inputs:
                self.inputs[path] = self.fresh()
        return {number: self.inputs[path] for number, path in trace.inputs}


@dataclass(frozen=True, slots=True, eq=False)
class _Exit:
    """ids: what the state after this outcome consists of, as the Branch calls it."""

    branch: Branch
    outcome: Outcome
    ids: tuple[int, ...]


class _Contradiction(Exception):
    """A round of a loop is not what it was proven to be."""


class Planter:
    """Follows one trace through a tree, and plants what is missing. Nothing in the tree changes before all is there.

    planted: the new nodes, in the order of the trace, when `plant` has returned True.
    """

    def __init__(self, trace: Trace, names: Names, grafts: bool = False) -> None:
        """grafts: the trace, which is for exact sizes, goes along Branches for open ones."""
        self._trace = trace
        self._names = names
        self._grafts = grafts
        self._way: list[Branch] = []
        self._inputs = names.of_inputs(trace)
        self._start()

    def _start(self) -> None:
        self.planted: list[Leaf | Branch] = []
        self._ids = dict(self._inputs)
        self._met: dict[Hashable, tuple[Branch, tuple[int, ...]]] = {}
        self._added: dict[int, tuple[Children, list[tuple[Outcome, Leaf | Branch]]]] = {}
        self._heads: list[Branch] = []
        self._known: dict[Branch, frozenset[int]] = {}
        self._joins: dict[Hashable, tuple[Branch, tuple[int, ...]]] = {}
        self._exits: list[tuple[Hashable, _Exit]] = []

    @classmethod
    def after(cls, trace: Trace, names: Names, way: Sequence[Branch], grafts: bool = False) -> Planter | None:
        """A planter that has followed `trace` along `way`; None when the trace does not go there, and on."""
        planter = cls(trace, names, grafts)
        if len(trace.segments) <= len(way):
            return None
        planter._way = list(way)
        return planter if planter._follow_way() else None

    def plant(self, build: Callable[[Segment], Step]) -> bool:
        """Plant the rest of the trace. build: compiles a segment.

        Returns False, and leaves the tree as it is, when the rest needs what the way does not hand on. Raises what
        `build` raises.
        """
        try:
            done = self._plant(build, may_loop=True)
        except _Contradiction:
            done = False
        if not done:  # what comes after a loop may look at what one of its rounds alone had
            self._start()
            self._follow_way()
            done = self._plant(build, may_loop=False)
        if done:
            self._commit()
        return done

    def graft(self, build: Callable[[Segment], Step]) -> bool:
        """Plant what comes between the end of the way and where the ways join, or the call ends.

        Returns False, and leaves the tree as it is, when that may be different for other sizes. Raises what `build`
        raises.
        """
        last, (met, *new) = self._way[-1], self._trace.segments[len(self._way) - 1 :]
        end = next((number for number, segment in enumerate(new, 1) if self._ends(segment)), None)
        if end is None or not last.is_settled:
            return False
        looks = [segment.look for segment in (met, *new[: end - 1])]
        if any(look is None or (look.dims and open_outcome(look.outcome, look.dims) != look.outcome) for look in looks):
            return False
        children, known, outcome = last.children, self._known_after(last, _outcome(met)), _outcome(met)
        for segment in new[:end]:
            if not self._can_read(segment, known):
                return False
            node = self._node(segment, build, known, may_loop=True)
            self._added.setdefault(id(children), (children, []))[1].append((outcome, node))
            self.planted.append(node)
            if isinstance(node, Leaf) or node.moves:
                self._commit()
                return True
            children, known, outcome = node.children, self._known_after(node, _outcome(segment)), _outcome(segment)
        return False

    def _ends(self, segment: Segment) -> bool:
        """Whether the call ends with `segment`, or its way joins another one there."""
        return segment.look is None or any(self._key(state) in self._names.joins for state in segment.states)

    # -- what is there -------------------------------------------------------------------------------------------

    def _follow_way(self) -> bool:
        return all(map(self._follow, self._way, self._trace.segments))

    def _follow(self, branch: Branch, segment: Segment) -> bool:
        """Go on by `branch`, if it is what `segment` does."""
        look, seen = branch.look, segment.look
        if seen is None or look.kind is not seen.kind or look.source != seen.source:
            return False
        if not all(number in self._ids for number in segment.reads):
            return False
        if not self._is_as(branch, segment):
            return False
        # A trace for exact sizes may have numbers that one for open sizes has not.
        ids = {**self._ids, **dict(zip(_made(segment), branch.made, strict=not self._grafts))}
        if [ids.get(value.id) for value in seen.values] != list(branch.looked):
            return False
        self._ids = ids
        self._pass(branch, segment)
        return True

    def _is_as(self, branch: Branch, segment: Segment) -> bool:
        """Whether both do the same."""
        if self._grafts and segment.sizes is None and branch.sizes is not None:
            # The walk went this way, in this call: there is nothing else that Python could have done.
            nodes = branch.step.segment.graph.nodes
            return [node.op for node in nodes] == [node.op for node in segment.graph.nodes]
        return branch.structure == _structure(segment, self._ids)

    def _pass(self, branch: Branch, segment: Segment) -> None:
        """After the look of `branch`: remember the state there, and go by the names that its children use."""
        there = branch.names_after(_outcome(segment))
        if there is not None:
            kept = {number: there[here] for number, here in self._ids.items() if here in there}
            self._ids = {**self._inputs, **kept}
            return
        for state in segment.states:
            if state.outcome is None and all(number in self._ids for number in state.ids):
                here = branch, self._translated(state.ids)
                self._met.setdefault(self._key(state), here)
                if state.joins:
                    self._joins.setdefault(self._key(state), here)

    def _key(self, state: State) -> Hashable:
        return state.key, tuple([self._inputs.get(number) for number in state.inputs])

    def _below(self, branch: Branch) -> Children:
        found = {outcome: list(nodes) for outcome, nodes in branch.children.items()}
        _, added = self._added.get(id(branch.children), ((), ()))
        for outcome, node in added:
            found.setdefault(outcome, []).append(node)
        return found

    def _nodes_below(self, branch: Branch) -> list[Leaf | Branch]:
        return [node for nodes in self._below(branch).values() for node in nodes]

    def _known_after(self, branch: Branch, outcome: Outcome = None) -> frozenset[int]:
        if outcome in branch.exits:
            return frozenset([then for _, then in branch.exits[outcome]])
        return self._known.get(branch, branch.known)

    # -- what is new ---------------------------------------------------------------------------------------------

    def _plant(self, build: Callable[[Segment], Step], may_loop: bool) -> bool:
        last = self._way[-1] if self._way else None
        outcome = _outcome(self._trace.segments[len(self._way) - 1]) if last else None
        children, known = (last.children, self._known_after(last, outcome)) if last else ({}, frozenset())
        for number, segment in enumerate(self._trace.segments[len(self._way) :]):
            _, added = self._added.setdefault(id(children), (children, []))
            mine = [node for seen, node in added if seen == outcome]
            # The walk has shown that nothing fits at its end. What is there after a join may fit.
            there = children.get(outcome, ()) if number else ()
            found = next((node for node in (*mine, *there) if self._is_like(node, segment)), None)
            if found is None:
                if mine:
                    raise _Contradiction
                if not self._can_read(segment, known):
                    return False
                found = self._node(segment, build, known, may_loop)
                added.append((outcome, found))
                self.planted.append(found)
            if isinstance(found, Branch):
                children, outcome = found.children, _outcome(segment)
                known = self._known_after(found, outcome)
        return True

    def _is_like(self, node: Leaf | Branch, segment: Segment) -> bool:
        """Whether a node that was planted before is what `segment` does; then go on by it."""
        return segment.look is None if isinstance(node, Leaf) else self._follow(node, segment)

    def _can_read(self, segment: Segment, known: frozenset[int]) -> bool:
        """Whether everything that the segment takes is handed to it."""
        return all(number in self._inputs or self._ids.get(number) in known for number in segment.reads)

    def _node(
        self, segment: Segment, build: Callable[[Segment], Step], known: frozenset[int], may_loop: bool
    ) -> Leaf | Branch:
        guard, inputs = self._trace.guard, tuple(self._inputs.values())
        if segment.look is None:
            step = build(segment)
            reads = None if len(self._trace.segments) == 1 else self._translated(segment.reads)
            return Leaf(guard, inputs, reads, step, step.run, self._trace.finish, self._trace.effects, segment.sizes)
        look, structure, reads = segment.look, _structure(segment, self._ids), self._translated(segment.reads)
        for number in _made(segment):
            if number not in self._ids:
                self._ids[number] = self._names.fresh()
        exports = self._translated(segment.exports)
        drops = tuple([self._ids[number] for number in segment.drops if number in self._ids])
        numbers = tuple([(self._ids[number], tensor) for number, tensor in segment.numbers])
        there = known.union(exports, [number for number, _ in numbers])
        branch = Branch(
            guard=guard,
            inputs=inputs,
            step=build(segment),
            look=look,
            structure=structure,
            made=self._translated(_made(segment)),
            reads=reads,
            exports=exports,
            looked=self._translated([value.id for value in look.values]),
            drops=drops,
            known=there.difference(drops),
            is_settled=any(state.joins and state.outcome is None for state in segment.states),
            sizes=segment.sizes,
            numbers=numbers,
        )
        if may_loop:
            self._close(branch, segment, there)
        for state in segment.states:
            if state.outcome is not None and all(number in self._ids for number in state.ids):
                exit_ = _Exit(branch, state.outcome, self._translated(state.ids))
                self._exits.append(((state.outcome, self._key(state)), exit_))
        self._pass(branch, segment)
        return branch

    def _translated(self, numbers: Sequence[int]) -> tuple[int, ...]:
        return tuple([self._ids[number] for number in numbers])

    # -- loops ---------------------------------------------------------------------------------------------------

    def _close(self, branch: Branch, segment: Segment, there: frozenset[int]) -> None:
        """Make `branch` share the children of another one with the same state, if there is one.

        there: what is known before `branch` drops anything.
        """
        for state in segment.states:
            if state.outcome is not None:
                continue
            found = self._met.get(self._key(state)) or self._names.joins.get(self._key(state))
            if found is not None and self._share(branch, there, state, *found):
                return

    def _share(self, branch: Branch, there: frozenset[int], state: State, head: Branch, thens: tuple[int, ...]) -> bool:
        """Whether `branch` could be made to share the children of `head`, where `thens` were the ids of the state."""
        nows, keeps = tuple([self._ids.get(number, 0) for number in state.ids]), frozenset(thens)
        known: dict[Branch, frozenset[int]] = {head: keeps}
        if head.exits or (head.is_head and self._known_after(head) != keeps) or not self._suffices(head, known):
            return False
        if not there.issuperset(nows):
            return False
        self._heads.append(head)
        self._known.update(known)
        branch.children, branch.known = head.children, keeps
        branch.moves = tuple(zip(nows, thens, strict=True))
        branch.drops = tuple(there.difference(nows))
        return True

    def _suffices(self, head: Branch, known: dict[Branch, frozenset[int]]) -> bool:
        """Whether all that comes after `head` can do with what `known` says is known there; what is known after the
        other Branches is added."""
        return self._can_do_with(known[head], self._nodes_below(head), known)

    def _can_do_with(
        self, given: frozenset[int], nodes: Iterable[Leaf | Branch], known: dict[Branch, frozenset[int]]
    ) -> bool:
        """The same for what comes after `nodes`, where `given` is known."""
        inputs = set(self._names.inputs.values())
        pending = [(node, given) for node in nodes]
        while pending:
            node, before = pending.pop()
            if node.reads is None or not inputs.union(before).issuperset(node.reads):
                return False
            if isinstance(node, Leaf):
                continue
            there = before.union(node.hands_on())
            needed = [*node.looked, *(now for now, _ in node.moves)]
            if not inputs.union(there).issuperset(needed):
                return False
            needed = [now for moves in node.exits.values() for now, _ in moves]
            if node.exits and not there.issuperset(needed):
                return False
            if not node.moves:
                known[node] = there.difference(node.drops)
                for outcome, children in self._below(node).items():
                    if outcome not in node.exits:  # what is shared can do with what it is given
                        pending += [(child, known[node]) for child in children]
        return True

    # -- exits ---------------------------------------------------------------------------------------------------

    def _share_exits(self) -> None:
        """What comes after outcomes that leave equal states is the same, once it is there for one of them."""
        exits = self._names.exits
        for key, exit_ in self._exits:
            exits.setdefault(key, []).append(exit_)
        for key in exits:
            free = [each for each in exits[key] if not (each.branch.moves or each.branch.is_head)]
            found = [each for each in free if each.outcome in each.branch.children]
            lacking = [each for each in free if each.outcome not in each.branch.children and self._has(each)]
            head = next((each for each in found if lacking and self._can_be_shared(each)), None)
            if head is None:
                continue
            head.branch.exits.setdefault(head.outcome, tuple([(number, number) for number in head.ids]))
            names = [then for _, then in head.branch.exits[head.outcome]]
            for each in lacking:
                each.branch.exits[each.outcome] = tuple(zip(each.ids, names, strict=True))
                each.branch.children[each.outcome] = head.branch.children[head.outcome]
            exits[key] = [each for each in exits[key] if each not in lacking]

    def _has(self, exit_: _Exit) -> bool:
        return exit_.branch.known.issuperset(exit_.ids)

    def _can_be_shared(self, exit_: _Exit) -> bool:
        """Whether what comes after it can do with what the state consists of."""
        branch, outcome, known = exit_.branch, exit_.outcome, dict[Branch, frozenset[int]]()
        if outcome not in branch.exits:
            children = branch.children[outcome]
            if not self._can_do_with(frozenset(exit_.ids), children, known):
                return False
            numbers = frozenset([number for number, _ in branch.numbers])
            if any(_asks_for(child, numbers) for child in children):
                return False  # each number is a way of its own
            for below, there in known.items():
                below.known = there
        return True

    # -- the end -------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        self._names.joins = {**self._joins, **self._names.joins}
        for head in self._heads:
            head.is_head = True
            head.drops = (*head.drops, *head.known.difference(self._known[head]))
        for branch, known in self._known.items():
            branch.known = known
        for children, added in self._added.values():
            for outcome, node in added:
                children[outcome] = [*children.get(outcome, ()), node]
        self._added = {}
        self._share_exits()


def _asks_for(node: Leaf | Branch, numbers: Set[int]) -> bool:
    """Whether Python asks for the value of one of these numbers, or of one that follows from them, at this node or
    below it."""
    if isinstance(node, Leaf) or not numbers:
        return False
    graph, following = node.step.segment.graph, set(numbers)
    names = {value.id: number for value, number in zip(graph.inputs, node.reads, strict=True)}
    names |= dict(zip(_made(node.step.segment), node.made, strict=True))
    for each in graph.nodes:
        operands = [names.get(value.id) for value in each.inputs()]
        if operands and following.issuperset(operands):
            following.update([names[value.id] for value in each.outputs])
    if node.look.kind is not OutcomeKind.TRUTH and following.issuperset(node.looked):
        return True
    ways = () if node.moves else [child for way in node.children.values() for child in way]
    return any(_asks_for(child, following) for child in ways)


def _outcome(segment: Segment) -> Outcome:
    assert segment.look is not None
    return segment.look.outcome


def _made(segment: Segment) -> list[int]:
    """Ids of what the nodes compute, and of numbers, in order."""
    computed = [value.id for node in segment.graph.nodes for value in node.outputs]
    return computed + [number for number, _ in segment.numbers]


def _structure(segment: Segment, ids: Mapping[int, int]) -> Hashable:
    """The key of what a segment does, whatever its look sees: a shape that depends on data is what is looked at."""
    numbers = tuple([(tensor.dtype, constant_digest(tensor)) for _, tensor in segment.numbers])
    if segment.sizes is None:
        return numbers, graph_structure(_with_some_shape(segment.graph, segment.look), names=ids)
    reads = segment.reads
    sources = tuple([(ids[reads[number]], dim) for number, dim in segment.sizes.sources])
    graphs = [_with_some_shape(graph, segment.look) for graph in segment.sizes.template.canonical()]
    quotients = segment.sizes.template.quotients
    return numbers, sources, quotients, *[graph_structure(graph, names=ids) for graph in graphs]


def _with_some_shape(graph: Graph, look: Look | None) -> Graph:
    if look is None or look.kind is not OutcomeKind.SHAPE:
        return graph
    *nodes, last = graph.nodes
    unknown = tuple([Value(value.id, _SOME_SHAPE) for value in last.outputs])
    return replace(graph, nodes=(*nodes, replace(last, outputs=unknown)))
