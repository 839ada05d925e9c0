"""Cuts a joint Graph into a forward and a backward.

Why: eager keeps whatever the formulas of the backward read. Much of that is a few pointwise ops away from something
that is kept anyway, and such ops are free inside a fused backward kernel. What to keep is a minimum cut: values are
edges that weigh their bytes, from what cannot be computed again (products, convolutions, reductions, random numbers)
to what the backward reads (Jain et al., "Checkmate", MLSys 2020, states the problem; for graphs whose inner nodes are
free to recompute it is a minimum cut).

Before:
    def graph(x0: f32[4, 8], x1: f32[8, 8], x2: f32[4, 8]):
        t3 = aten.mm.default(x0, x1)
        t4 = aten.exp.default(t3)
        t5 = aten.sin.default(t4)
        t6 = aten.cos.default(t4)
        t7 = aten.mul.Tensor(x2, t6)
        t8 = aten.mul.Tensor(t7, t4)
        return t5, t8
After:
    def graph(x0: f32[4, 8], x1: f32[8, 8]):
        t2 = aten.mm.default(x0, x1)
        t3 = aten.exp.default(t2)
        t4 = aten.sin.default(t3)
        return t4, t3
    def graph_backward(x0: f32[4, 8], x1: f32[4, 8]):
        t2 = aten.cos.default(x0)
        t3 = aten.mul.Tensor(x1, t2)
        t4 = aten.mul.Tensor(t3, x0)
        return t4
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from dsjit.ir.graph import Graph, Node, Value
from dsjit.ir.joint_graph import JointGraph
from dsjit.ops.properties import is_reproducible, shares_memory
from dsjit.ops.row import Pointwise, View
from dsjit.ops.table import rule_of
from dsjit.passes.dce import eliminate_dead_code
from dsjit.passes.minimum_cut import UNLIMITED, Network
from dsjit.passes.recompute_cost import BYTES_PER_SECOND, is_product, recompute_seconds
from dsjit.passes.rewrite import inputs_of
from dsjit.passes.segments import forward_nodes, segments

__all__ = ["Partition", "can_compute_again", "cheapest_to_keep", "kept_for", "nodes_leading_to", "partition"]

BYTE: Final = 100
"""What a byte weighs that is kept."""

BYTE_ALIVE_ANYWAY: Final = 1
"""What a byte weighs that the caller holds as well (an argument, a result)."""

CHAIN_PARTS: Final = 11
"""Of about equal bytes, that a forward has; what is computed again goes back over two of them at most. Of 6, 8, 11 and
16 parts, 11 take the least memory with ResNet-152."""

CHAIN_NODES: Final = 16
"""A part has at least so many nodes."""

CHAIN_BYTES: Final = 2**18
"""Bytes of a value that is a link between them."""

WORTH: Final = 4
"""How much longer than to write and read a value it may take to compute it again, since it then takes no memory."""


@dataclass(frozen=True, slots=True)
class Partition:
    """forward: from the primals to the results and then to what is `kept`. backward: from what is kept and the
    gradients of results to the distinct gradients.

    kept: in the order in which the backward takes it. shared: primals and results that may be kept as they are; the
        forward returns copies of others, as the caller may write to them.
    """

    forward: Graph
    backward: Graph
    kept: tuple[Value, ...]
    shared: frozenset[Value]

    @property
    def own(self) -> tuple[Value, ...]:
        """What is kept for the backward alone: the last results of the forward."""
        return tuple([value for value in self.kept if value not in self.shared])

    @property
    def released(self) -> frozenset[int]:
        """Numbers of the backward's inputs that nobody else holds: their memory is free after their last use."""
        return frozenset([number for number, value in enumerate(self.kept) if value not in self.shared])


def partition(
    joint: JointGraph, recomputed: Sequence[Collection[Node]] = (), like: Partition | None = None
) -> Partition:
    """The two Graphs; `joint.graph` should have been simplified before.

    recomputed: parts of the forward that are computed again from what enters them, at whatever cost.
    like: keeps what this one keeps, which is of a Graph of the same ops, for other sizes.
    """
    graph = joint.graph
    primals, tangents = graph.inputs[: joint.primals], graph.inputs[joint.primals :]
    results, gradients = graph.outputs[: joint.results], graph.outputs[joint.results :]
    late = _depending_on(graph, tangents)
    shared = _shared(joint)
    if like is None:
        kept = kept_for(joint, recomputed)
    else:
        ids = {value.id for value in like.kept}
        every = (*graph.inputs, *(value for node in graph.nodes for value in node.outputs))
        kept = {value for value in every if value.id in ids}
    order = {value: number for number, value in enumerate(graph.inputs)}
    order |= {value: len(order) + number for number, node in enumerate(graph.nodes) for value in node.outputs}
    ordered = tuple(sorted(kept, key=lambda value: (order[value], value.id)))
    early = [node for node in graph.nodes if late.isdisjoint(node.outputs)]
    rest = [value for value in ordered if value not in shared]
    copies = _copies(graph, [value for value in rest if value in primals or value in results])
    early += copies.values()
    outputs = (*results, *(copies[value].output if value in copies else value for value in rest))
    forward = Graph(primals, tuple(early), outputs, graph.writes, graph.constants, graph.name)
    again = nodes_leading_to(graph, kept, gradients, late)
    backward = Graph((*ordered, *tangents), tuple(again), gradients, (), graph.constants, f"{graph.name}_backward")
    backward = _own_outputs(eliminate_dead_code(backward), len(ordered))
    return Partition(eliminate_dead_code(forward), backward, ordered, frozenset(shared))


def kept_for(joint: JointGraph, recomputed: Sequence[Collection[Node]]) -> set[Value]:
    """What `partition` keeps of `joint`, before anything is copied."""
    graph = joint.graph
    late = _depending_on(graph, graph.inputs[joint.primals :])
    needed = _needed(graph, late, graph.outputs[joint.results :])
    if recomputed:
        needed = _before(graph, needed, late, recomputed)
    shared = _shared(joint)
    kept = cheapest_to_keep(graph, needed, shared)
    ends = _ends_of_chains(joint, needed, kept, recomputed)
    return cheapest_to_keep(graph, needed, shared, ends) if ends else kept


def cheapest_to_keep(
    graph: Graph, needed: Collection[Value], shared: set[Value], ends: Collection[Value] = ()
) -> set[Value]:
    """What to keep, so that all that is `needed` can be computed from it; of equal choices, that nearest to what is
    needed: the least is computed again. shared: what the caller holds, and may be kept without a copy. ends: are not
    computed again."""
    return _Cut(graph, shared, ends).minimum(needed)


def _ends_of_chains(
    joint: JointGraph, needed: Iterable[Value], kept: Collection[Value], recomputed: Sequence[Collection[Node]]
) -> set[Value]:
    """What had better be kept of what could be computed again: one value or so for each part of the forward that would
    be computed again from what was, in an earlier part.

    Not of the parts `recomputed`, of which nothing is to be kept but what enters.

    Blocks of a residual network are sums of what came before, which cost nothing; but the last of them, which is the
    first that the backward wants, needs all of them, and each stays in memory until its own backward.
    """
    graph = joint.graph
    producers = graph.producers()
    again: set[Value] = set()
    stack = [value for value in needed if value not in kept and value in producers]
    while stack:
        value = stack.pop()
        if value not in again:
            again.add(value)
            stack += [each for each in inputs_of(producers[value]) if each not in kept and each in producers]
    again.difference_update(value for part in recomputed for node in part for value in node.outputs)
    part_of: dict[Value, int] = {}
    links: dict[Value, int] = {}
    ends: set[Value] = set()
    every = forward_nodes(joint)
    for number, nodes in enumerate(segments(graph, every, min(CHAIN_PARTS, len(every) // CHAIN_NODES))):
        for node in nodes:
            if again.isdisjoint(node.outputs):
                continue
            most = 0
            for value in inputs_of(node):
                if value not in part_of or value in ends:
                    continue
                far = part_of[value] != number and value.type.nbytes >= CHAIN_BYTES
                if far and links[value] >= 1:
                    ends.add(value)
                else:
                    most = max(most, links[value] + far)
            in_place = shares_memory(node.op)
            for value in node.outputs:
                part_of[value], links[value] = number, most
                if in_place:
                    part_of[value] = part_of.get(next(node.inputs()), number)
    return {_owner(value, producers) for value in ends} & again


def _owner(value: Value, producers: Mapping[Value, Node]) -> Value:
    """What the value is a view of."""
    while value in producers and shares_memory(producers[value].op):
        value = next(producers[value].inputs())
    return value


def _shared(joint: JointGraph) -> set[Value]:
    """What the caller holds, and may be kept without a copy."""
    graph = joint.graph
    found = {graph.inputs[number] for number in joint.keepable_primals} - {write.target for write in graph.writes}
    return found | {graph.outputs[number] for number in joint.keepable_results}


def _depending_on(graph: Graph, values: Iterable[Value]) -> set[Value]:
    found = set(values)
    for node in graph.nodes:
        if not found.isdisjoint(inputs_of(node)):
            found.update(node.outputs)
    return found


def _needed(graph: Graph, late: set[Value], gradients: Iterable[Value]) -> list[Value]:
    """What the nodes that depend on gradients read, and gradients that depend on none."""
    found = {value: None for value in gradients if value not in late}
    for node in graph.nodes:
        if not late.isdisjoint(node.outputs):
            found.update((value, None) for value in inputs_of(node) if value not in late)
    return [value for value in found if value not in graph.constants]


def _before(
    graph: Graph, needed: Iterable[Value], late: set[Value], recomputed: Sequence[Collection[Node]]
) -> list[Value]:
    """What has to be there so that the parts `recomputed`, each on its own, can give what of theirs is needed."""
    producers = graph.producers()
    part_of = {
        value: number
        for number, nodes in enumerate(recomputed)
        for node in nodes
        if is_reproducible(node) and not _narrows_what_was_drawn(node, producers)
        for value in node.outputs
    }
    found: dict[Value, None] = {}
    stack = _read_by_backward(graph, needed, late, part_of)
    seen = set(stack)
    while stack:
        value = stack.pop()
        part = part_of.get(value)
        if part is None:
            found[value] = None
            continue
        for before in inputs_of(producers[value]):
            if before in graph.constants:
                continue
            if part_of.get(before) != part:
                found[before] = None
            elif before not in seen:
                seen.add(before)
                stack.append(before)
    return list(found)


def _read_by_backward(graph: Graph, needed: Iterable[Value], late: set[Value], again: Collection[Value]) -> list[Value]:
    """`needed`, but in place of what formulas of the backward make of values `again` for next to nothing, these."""
    nodes = graph.nodes
    start = next((number for number, node in enumerate(nodes) if not late.isdisjoint(node.outputs)), len(nodes))
    behind: dict[Value, Node] = {}
    of_again = set(again)
    for node in nodes[start:]:
        if late.isdisjoint(node.outputs) and can_compute_again(node) and not of_again.isdisjoint(inputs_of(node)):
            behind.update((value, node) for value in node.outputs)
            of_again.update(node.outputs)
    found: dict[Value, None] = {}
    stack = list(needed)
    while stack:
        value = stack.pop()
        if value not in behind:
            found[value] = None
            continue
        stack += [each for each in inputs_of(behind[value]) if each not in found and each not in graph.constants]
    return list(found)


def _narrows_what_was_drawn(node: Node, producers: Mapping[Value, Node]) -> bool:
    """Whether the node's result is smaller than an operand that cannot be computed again (a mask of random numbers)."""
    return any(
        before in producers
        and not is_reproducible(producers[before])
        and node.outputs[0].type.nbytes < before.type.nbytes
        for before in inputs_of(node)
    )


def can_compute_again(node: Node) -> bool:
    """Whether the node costs next to nothing inside a fused kernel, and gives the same bits a second time."""
    if not is_reproducible(node):
        return False
    return shares_memory(node.op) or isinstance(rule_of(node), Pointwise | View) or not inputs_of(node)


def _price(node: Node) -> int:
    """What it costs to compute the node again, as what is kept is weighed; no limit when it is to be kept."""
    if can_compute_again(node):
        return 0
    if not is_product(node) or not is_reproducible(node):
        return UNLIMITED
    return round(recompute_seconds(node) * BYTES_PER_SECOND / (2 * WORTH) * BYTE)


class _Cut:
    """shared: what the caller holds, and may be kept without a copy. ends: are not computed again."""

    def __init__(self, graph: Graph, shared: set[Value], ends: Collection[Value]) -> None:
        self.graph = graph
        self.shared = shared
        self.ends = ends
        self.producers = graph.producers()
        self.network = Network()
        self.source, self.end = self.network.vertex(), self.network.vertex()
        self.entries: dict[Value, int] = {}

    def minimum(self, needed: Collection[Value]) -> set[Value]:
        self._connect(needed)
        behind = self.network.behind_cut(self.source, self.end)
        return {value for value, entry in self.entries.items() if entry + 1 in behind and entry not in behind}

    def _connect(self, needed: Collection[Value]) -> None:
        """From where values come to what is needed. Each value is an edge from its entry to the vertex after that."""
        network = self.network
        stack: list[Value] = []

        def entry(value: Value) -> int:
            found = self.entries.get(value)
            if found is None:
                found = self.entries[value] = network.vertex()
                network.connect(found, network.vertex(), self._weight(value))
                stack.append(value)
            return found

        for value in needed:
            network.connect(entry(value) + 1, self.end)
        while stack:
            value = stack.pop()
            here, node = self.entries[value], self.producers.get(value)
            price = UNLIMITED if node is None or value in self.ends else _price(node)
            if price >= self._weight(value) and price:
                network.connect(self.source, here)
                continue
            assert node is not None
            if price:
                network.connect(self.source, here, price)
            for before in inputs_of(node):
                if before not in self.graph.constants:
                    network.connect(entry(before) + 1, here)

    def _weight(self, value: Value) -> int:
        """What it costs to keep the value; no limit when it may not be kept."""
        node = self.producers.get(value)
        if node is not None and shares_memory(node.op):
            return UNLIMITED
        return BYTE + value.type.nbytes * (BYTE_ALIVE_ANYWAY if value in self.shared else BYTE)


def nodes_leading_to(graph: Graph, kept: Collection[Value], gradients: Iterable[Value], late: set[Value]) -> list[Node]:
    """The nodes that lead from `kept` and the gradients of results to `gradients`. What is computed again comes just
    before it is first wanted, so that no more of it is alive at once than has to be."""
    wanted = {value for value in gradients if value not in kept}
    found: list[Node] = []
    for node in reversed(graph.nodes):
        if not wanted.isdisjoint(node.outputs):
            found.append(node)
            wanted.update(value for value in inputs_of(node) if value not in kept)
    again = {value: node for node in found for value in node.outputs if value not in late}
    ordered: dict[Node, None] = {}
    for node in reversed(found):
        if late.isdisjoint(node.outputs):
            continue
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [again[value] for value in inputs_of(top) if value in again and again[value] not in ordered]
            if not missing:
                ordered[stack.pop()] = None
            else:
                stack += missing
    ordered.update((node, None) for node in reversed(found))
    return list(ordered)


def _copies(graph: Graph, values: Iterable[Value]) -> dict[Value, Node]:
    number = graph.next_id()
    kwargs = {"memory_format": torch.preserve_format}
    return {
        value: Node(torch.ops.aten.clone.default, (value,), kwargs, (Value(number + place, value.type),))
        for place, value in enumerate(dict.fromkeys(values))
    }


def _own_outputs(backward: Graph, kept: int) -> Graph:
    """A gradient that is something kept is copied: the caller may write to it."""
    inputs = set(backward.inputs[:kept])
    copies = _copies(backward, [value for value in backward.outputs if value in inputs])
    outputs = tuple([copies[value].output if value in copies else value for value in backward.outputs])
    return replace(backward, nodes=(*backward.nodes, *copies.values()), outputs=outputs)
