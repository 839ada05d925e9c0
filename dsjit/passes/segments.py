"""Where a forward falls into parts between which little is alive: layers, blocks.

Why: a part is computed again in the backward from what enters it. Where that is narrow, as between the layers of a
network, little has to be kept (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016). No structure of
modules is asked for: parts have about equal shares of some bytes, all that are computed or those that would be kept,
and end where the fewest bytes are alive.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate, pairwise

from dsjit.ir.graph import Graph, Node, Value
from dsjit.ir.joint_graph import JointGraph
from dsjit.ops.properties import shares_memory
from dsjit.passes.rewrite import inputs_of

__all__ = ["checkpointed_nodes", "forward_nodes", "segments"]


def forward_nodes(joint: JointGraph) -> list[Node]:
    """The nodes in order, up to the first that depends on a gradient. What comes behind belongs to the backward, also
    where it depends on none."""
    late = set(joint.graph.inputs[joint.primals :])
    nodes = joint.graph.nodes
    end = next((number for number, node in enumerate(nodes) if not late.isdisjoint(inputs_of(node))), len(nodes))
    return list(nodes[:end])


def checkpointed_nodes(joint: JointGraph) -> list[list[Node]]:
    """The nodes of the forward that the user wants to be computed again (`torch.utils.checkpoint`), by checkpoint."""
    found: dict[int, list[Node]] = {}
    for node in forward_nodes(joint):
        if node.source.region:
            found.setdefault(node.source.region, []).append(node)
    return list(found.values())


def segments(
    graph: Graph, nodes: Sequence[Node], count: int, weigh: Collection[Value] | None = None
) -> list[Sequence[Node]]:
    """The nodes (a forward's, in order) in at most `count` parts. Linear in nodes and count.

    weigh: of which values the parts have about equal shares; of all, without it.
    """
    alive, made = _bytes_alive(graph, nodes)
    if weigh is not None:
        own = set(weigh)
        made = [0, *accumulate(sum(value.type.nbytes for value in node.outputs if value in own) for node in nodes)]
    total = made[-1]
    ends = [0]
    for number in range(1, count):
        low, high = ((number + shift) * total / count for shift in (-0.5, 0.5))
        places = [place for place in range(ends[-1] + 1, len(nodes)) if low <= made[place] < high]
        if places:
            aim = number * total / count
            ends.append(min(places, key=lambda place: (alive[place], abs(made[place] - aim))))
    return [nodes[start:end] for start, end in pairwise([*ends, len(nodes)])]


def _bytes_alive(graph: Graph, nodes: Sequence[Node]) -> tuple[list[int], list[int]]:
    """Before each node and after the last: bytes of results that later ones read, and of all results so far."""
    owners: dict[Value, Value] = {}
    last: dict[Value, int] = {}
    born: dict[Value, int] = {}
    made = [0]
    for number, node in enumerate(nodes):
        for value in inputs_of(node):
            owner = owners.get(value, value)
            if owner in born:
                last[owner] = number
        if shares_memory(node.op):
            source = next(node.inputs())
            owners.update((value, owners.get(source, source)) for value in node.outputs)
            made.append(made[-1])
            continue
        born.update((value, number) for value in node.outputs)
        made.append(made[-1] + sum(value.type.nbytes for value in node.outputs))
    change = [0] * (len(nodes) + 2)
    for value, end in last.items():
        change[born[value] + 1] += value.type.nbytes
        change[end + 1] -= value.type.nbytes
    alive = [0]
    for number in range(1, len(nodes) + 1):
        alive.append(alive[-1] + change[number])
    return alive, made
