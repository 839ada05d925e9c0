"""The groups of results that autograd is told of, each with a part of the backward."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from dsjit.api.compile import Compilation
from dsjit.codegen.low_memory import LowMemory
from dsjit.ir.graph import Graph, TensorType
from dsjit.ir.graph_template import GraphTemplate
from dsjit.ir.joint_graph import JointGraph, JointTemplate
from dsjit.passes.partition import Partition
from dsjit.passes.undefined_gradients import without_gradients

__all__ = ["Backward", "Group", "OpenTraining", "Point", "Runner", "make_groups"]

Point: TypeAlias = tuple[int, ...]
"""The open sizes of a call."""

Runner: TypeAlias = Callable[[Point, Iterable[torch.Tensor]], Sequence[torch.Tensor]]


@dataclass(slots=True)
class Backward:
    """run: from what is kept and the defined gradients of results to gradients. places: of each gradient among those;
    None when it is undefined. compilation: None when the Graph runs op by op. proven: whether `run` went well once, or
    memory is too short to find out."""

    graph: Graph | GraphTemplate
    places: tuple[int | None, ...]
    run: Runner
    compilation: Compilation | None
    proven: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class OpenTraining:
    """What a Training for many sizes has beside one for exact sizes. backward: of `Partition`.

    layouts: by the sizes, the types of the gradients of results, and `JointGraph.shapes`.
    """

    joint: JointTemplate
    backward: GraphTemplate
    layouts: dict[Point, tuple[tuple[TensorType, ...], tuple[tuple[int, ...] | None, ...]]] = field(
        default_factory=dict
    )


@dataclass(slots=True, eq=False)
class Group:
    """Results that one node of autograd's graph makes.

    members: numbers of results. tangents: their places among the differentiated results. ends: numbers of the primals,
    and behind them of the leaves, that gradients flow to. graph: from what is kept and the gradients of the members to
    gradients, of which each end has that of number `places`.
    shared, own: numbers among what the partition keeps, of what autograd saves, and of what is let go while the
    backward runs. order: of the graph's inputs among both, in a row.
    low_memory: for the graph; None when it takes memory as other Programs do.
    backwards: by which gradients of results are defined, compiled when first wanted.
    """

    members: tuple[int, ...]
    tangents: tuple[int, ...]
    ends: tuple[int, ...]
    shared: tuple[int, ...]
    own: tuple[int, ...]
    order: tuple[int, ...]
    graph: Graph | GraphTemplate
    places: tuple[int, ...]
    low_memory: LowMemory | None
    backwards: dict[tuple[bool, ...], Backward] = field(default_factory=dict)


def make_groups(
    joint: JointGraph, partition: Partition, low_memory: LowMemory | None, sizes: OpenTraining | None
) -> Iterator[Group]:
    """The groups of `joint`, or one of all results. low_memory: for the backward of the partition.

    Raises Mismatch when no program serves all sizes.
    """
    graph = partition.backward
    start = len(partition.kept)
    ends = [(end, number) for end, number in enumerate(joint.gradients) if number is not None]
    if len(joint.groups) <= 1:
        yield Group(
            joint.differentiated,
            tuple(range(len(joint.differentiated))),
            tuple([end for end, _ in ends]),
            *_split(range(start), low_memory),
            graph if sizes is None else sizes.backward,
            tuple([number for _, number in ends]),
            low_memory,
        )
        return
    for members in joint.groups:

        def without_others(each: Graph, members: Sequence[int] = members) -> tuple[Graph, tuple[int | None, ...]]:
            tangents = each.inputs[start:]
            others = [value for number, value in enumerate(tangents) if number not in members]
            return without_gradients(each, tangents, others)

        mine, places = without_others(graph)
        read = {*mine.outputs, *(value for node in mine.nodes for value in node.inputs())}
        kept = [number for number in range(start) if mine.inputs[number] in read]
        chosen = (*kept, *range(start, start + len(members)))

        def narrowed(each: Graph, chosen: Sequence[int] = chosen) -> Graph:
            found, _ = without_others(each)
            return replace(found, inputs=tuple([found.inputs[number] for number in chosen]))

        reached = [(end, place) for end, number in ends if (place := places[number]) is not None]
        yield Group(
            tuple([joint.differentiated[number] for number in members]),
            members,
            tuple([end for end, _ in reached]),
            *_split(kept, low_memory),
            narrowed(graph) if sizes is None else sizes.backward.rewritten(sizes.joint.typical, narrowed),
            tuple([place for _, place in reached]),
            None if low_memory is None else _renumbered(low_memory, kept),
        )


def _split(
    kept: Collection[int], low_memory: LowMemory | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """What is saved and what is let go of `kept`, and the order of `kept` among both."""
    released = frozenset[int]() if low_memory is None else low_memory.released
    shared = tuple([number for number in kept if number not in released])
    own = tuple([number for number in kept if number in released])
    place = {number: place for place, number in enumerate((*shared, *own))}
    return shared, own, tuple([place[number] for number in kept])


def _renumbered(low_memory: LowMemory, inputs: Sequence[int]) -> LowMemory:
    """For a Graph with these inputs only."""
    released, fetched = (
        frozenset([place for place, number in enumerate(inputs) if number in numbers])
        for numbers in (low_memory.released, low_memory.fetched)
    )
    return replace(low_memory, released=released, fetched=fetched)
