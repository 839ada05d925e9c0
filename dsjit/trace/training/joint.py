"""After a call whose results carry gradients: its forward and backward as one JointGraph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.autograd.graph import get_gradient_edge

from dsjit.ir.graph import Node, Value
from dsjit.ir.joint_graph import JointGraph
from dsjit.ops.properties import draws, shares_memory
from dsjit.trace.effects.replay import Returned
from dsjit.trace.looks.segments import Segment, cut
from dsjit.trace.recording.memory import CannotTrace, tensor_type
from dsjit.trace.recording.recorder import Recorder
from dsjit.trace.training.backward import walk_backward
from dsjit.trace.training.gradients import graph_of, is_spent, keeps_tensors
from dsjit.trace.training.results import find_results
from dsjit.trace.training.zero_gradients import ZeroGradients

aten = torch.ops.aten

__all__ = ["RecordedJoint", "carries_gradients", "record_joint"]


def carries_gradients(recorder: Recorder, items: Iterable[torch.Tensor | float]) -> bool:
    """Whether gradients may flow to what the call read, or to what it made, from a result or from what is left in an
    input."""
    memory = recorder.memory
    if memory.wants_gradients and memory.writes_with_history:
        return True
    tensors = [item for item in items if isinstance(item, torch.Tensor) and item.requires_grad]
    roots = [recorder.locate(tensor) for tensor in tensors if not is_spent(tensor, recorder.freed)]
    return any(root.input is None or root.view is not None for root in roots)


@dataclass(frozen=True, slots=True)
class RecordedJoint:
    """joint: of the last segment, and of the whole backward. segments: the last one has the forward of `joint`.

    returned: how each item is obtained. written: inputs of the call, by number, that it writes.
    """

    joint: JointGraph
    segments: tuple[Segment, ...]
    returned: tuple[Returned, ...]
    written: frozenset[int]


def record_joint(recorder: Recorder, items: Sequence[torch.Tensor | float], name: str) -> RecordedJoint:
    """The end of a recording, whose result and effects hold `items`, when gradients are wanted.

    Runs the backward once, on gradients of zeros (see `ZeroGradients`). Where Python looked at data, segments hand on
    what the backward reads; it belongs to the last one. Raises CannotTrace.
    """
    memory = recorder.memory
    if recorder.hooked:  # they may do anything, and would run once more than in eager
        raise CannotTrace("gradients are wanted through saved_tensors_hooks (torch.utils.checkpoint has them, too)")
    if memory.regions:
        raise CannotTrace("gradients are wanted, and inputs that share memory are written to")
    inputs = [tensor for _, tensor in memory.inputs]
    primals = tuple([value for value, _ in memory.inputs])
    results = find_results(recorder, items)
    writes = memory.writes()
    written = {write.target for write in writes}
    if any(tensor.requires_grad for value, tensor in memory.inputs if value in written):
        raise CannotTrace("a tensor that requires a gradient is written to in place")
    leaves = [made for made in results.made.values() if made.is_leaf]
    wanted = [made for made in results.made.values() if made.wanted and not made.is_leaf]
    targets = [made.tensor for made in wanted if made.tensor is not None]
    ends = [*inputs, *(leaf.tensor for leaf in leaves if leaf.tensor is not None)]
    start, looks = len(memory.nodes), len(recorder.looks)
    with torch.no_grad():
        tangents = [_zeros(target) for target in targets]
        for tangent in tangents:
            memory.remember_root(tangent, memory.fresh(tensor_type(tangent)))
        tangent_values = tuple([memory.read(tangent) for tangent in tangents])
        recorder.pause = recorder.resume = _nothing  # the user's code is not running, and nobody watches it
        if recorder.call is None:
            recorder.call = ZeroGradients(tangents).run
        try:
            with recorder, recorder.recalling():
                found = walk_backward(recorder, targets, tangents, ends)
        except RuntimeError as error:
            raise CannotTrace(f"the backward raises {error}") from error
        recorder.at = None
        if recorder.problems:
            raise CannotTrace(recorder.problems[0].reason)
        gradients = [None if gradient is None else memory.read(gradient) for gradient in found]
        narrow = [None if value is None else _narrowed(recorder, value) for value in gradients]
        if any(value is not None and value.type.may_overlap for value in narrow):
            raise CannotTrace("a gradient overlaps itself in memory")
    if len(recorder.looks) > looks:
        raise CannotTrace("what tensors hold is looked at while gradients are computed")
    if len(memory.inputs) > len(primals):
        raise CannotTrace("the backward reads a tensor that the call did not")
    backward = memory.nodes[start:]
    if any(map(draws, backward)):
        raise CannotTrace("random numbers are drawn while gradients are computed")
    distinct = tuple(dict.fromkeys(gradient for gradient in narrow if gradient is not None))
    recording = replace(recorder.recording(name), inputs=(*primals, *tangent_values))
    returned = [way.value for way in results.ways if way.is_input]
    reached = [value for value, gradient in zip(primals, gradients, strict=False) if gradient is not None]
    segments = cut(
        recording, (*results.made, *distinct), (*returned, *reached, *tangent_values), writes,
    )  # fmt: skip
    last = segments[-1].graph
    taken = last.inputs[: len(last.inputs) - len(tangents)]
    if last.inputs[len(taken) :] != tangent_values:
        raise CannotTrace("gradients of results are not the last that is taken")
    passed = [value for value in results.made if value in taken]
    made = [value for value in results.made if value not in passed]
    order = [*made, *passed]
    numbers = {value: number for number, value in enumerate(primals)}
    ends_of = [*(numbers.get(value) for value in taken), *range(len(primals), len(ends))]
    kept = _kept(memory.nodes, backward)
    with recorder.recalling():
        groups = _groups(targets, ends)
    graph = replace(last, outputs=(*made, *distinct), name=name)
    joint = JointGraph(
        graph,
        len(taken),
        len(made),
        tuple([order.index(each.value) for each in wanted]),
        tuple([None if end is None or narrow[end] is None else distinct.index(narrow[end]) for end in ends_of]),
        tuple([None if end is None else _shape(gradients[end]) for end in ends_of]),
        frozenset([number for number, value in enumerate(taken) if value in kept or value not in {*primals, *passed}]),
        frozenset([number for number, value in enumerate(made) if value in kept]),
        tuple([taken.index(value) for value in passed]),
        tuple([order.index(leaf.value) for leaf in leaves]),
        groups,
    )
    after = set(backward)
    nodes = tuple([node for node in last.nodes if node not in after])
    forward = replace(graph, inputs=taken, nodes=nodes, outputs=tuple(made))
    # No two rounds of a loop are alike: the backward reads what each of them made.
    ways = (*(replace(segment, states=()) for segment in segments[:-1]), Segment(forward, None))
    positions = frozenset([number for number, value in enumerate(primals) if value in written])
    return RecordedJoint(joint, ways, results.returned(taken, order), positions)


def _shape(gradient: Value | None) -> tuple[int, ...] | None:
    return None if gradient is None else gradient.type.shape


def _groups(targets: Sequence[torch.Tensor], ends: Sequence[torch.Tensor]) -> tuple[tuple[int, ...], ...]:
    """The numbers of `targets`, those together whose graphs share a node that keeps tensors: when one of them has been
    differentiated, these are freed for the others, too."""
    stops = {get_gradient_edge(end).node for end in ends if end.requires_grad}
    keeping = [
        {node for node in graph_of([target.grad_fn], stops) if keeps_tensors(node)} - stops for target in targets
    ]
    groups: list[tuple[list[int], set[object]]] = []
    for number, nodes in enumerate(keeping):
        mine = [group for group in groups if not nodes.isdisjoint(group[1])]
        groups = [group for group in groups if group not in mine]
        members = sorted([number, *(member for group in mine for member in group[0])])
        groups.append((members, nodes.union(*[group[1] for group in mine])))
    return tuple(sorted([tuple(members) for members, _ in groups]))


def _narrowed(recorder: Recorder, value: Value) -> Value:
    """`value` with one element along each dimension that was expanded."""
    type_ = value.type
    for dim, (size, stride) in enumerate(zip(type_.shape, type_.strides, strict=True)):
        if stride == 0 and size > 1:
            shape = (*value.type.shape[:dim], 1, *value.type.shape[dim + 1 :])
            value = recorder.emit(aten.slice.Tensor, (value, dim, 0, 1), {}, replace(value.type, shape=shape))
    return value


def _zeros(result: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(result, memory_format=torch.preserve_format)


def _kept(nodes: Sequence[Node], backward: Sequence[Node]) -> set[Value]:
    """What the backward reads, and what that is a view of."""
    producers = {value: node for node in nodes for value in node.outputs}
    kept: set[Value] = set()
    for node in backward:
        for value in node.inputs():
            while value not in kept:
                kept.add(value)
                maker = producers.get(value)
                if maker is None or not shares_memory(maker.op):
                    break
                value = next(maker.inputs())
    return kept


def _nothing() -> None:
    pass
