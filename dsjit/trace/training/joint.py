"""After a call whose results carry gradients: its forward and backward as one JointGraph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from dsjit.ir.graph import Graph, Node, Value
from dsjit.ir.joint_graph import JointGraph
from dsjit.ops.properties import shares_memory
from dsjit.trace.effects.replay import Returned
from dsjit.trace.looks.segments import open_looks
from dsjit.trace.recording.memory import CannotTrace, tensor_type
from dsjit.trace.recording.recorder import Recorder
from dsjit.trace.training.backward import walk_backward
from dsjit.trace.training.gradients import is_spent

aten = torch.ops.aten

__all__ = ["carries_gradients", "record_joint"]


def carries_gradients(recorder: Recorder, items: Iterable[torch.Tensor | float]) -> bool:
    """Whether gradients may flow to what the call read, from a result or from what is left in an input."""
    memory = recorder.memory
    if not memory.wants_gradients:
        return False
    if memory.writes_with_history:
        return True
    tensors = [item for item in items if isinstance(item, torch.Tensor) and item.requires_grad]
    roots = [recorder.locate(tensor) for tensor in tensors if not is_spent(tensor, recorder.freed)]
    return any(root.input is None or root.view is not None for root in roots)


def record_joint(
    recorder: Recorder, items: Sequence[torch.Tensor | float], name: str
) -> tuple[JointGraph, Graph, tuple[Returned, ...], frozenset[int]]:
    """The JointGraph, the forward as it was recorded, how each of `items` is obtained, and the inputs, by number, that
    the call writes.

    Runs the backward once, on gradients of zeros. Raises CannotTrace.
    """
    _require_straight(recorder, name)
    memory = recorder.memory
    if recorder.hooked:  # they may do anything, and would run once more than in eager
        raise CannotTrace("gradients are wanted through saved_tensors_hooks (torch.utils.checkpoint has them, too)")
    if memory.regions:
        raise CannotTrace("gradients are wanted, and inputs that share memory are written to")
    inputs = [tensor for _, tensor in memory.inputs]
    primals = tuple([value for value, _ in memory.inputs])
    results, returned = _results(recorder, items, primals)
    writes = memory.writes()
    written = {write.target for write in writes}
    if any(tensor.requires_grad for value, tensor in memory.inputs if value in written):
        raise CannotTrace("a tensor that requires a gradient is written to in place")
    differentiated = tuple([number for number, (_, t) in enumerate(results) if t is not None and t.requires_grad])
    targets = [t for _, t in results if t is not None and t.requires_grad]
    start = len(memory.nodes)
    with torch.no_grad():
        tangents = [_zeros(target) for target in targets]
        for tangent in tangents:
            memory.remember_root(tangent, memory.fresh(tensor_type(tangent)))
        tangent_values = tuple([memory.read(tangent) for tangent in tangents])
        recorder.pause = recorder.resume = _nothing  # the user's code is not running, and nobody watches it
        try:
            with recorder:
                found = walk_backward(recorder, targets, tangents, inputs)
        except RuntimeError as error:
            raise CannotTrace(f"the backward raises {error}") from error
        recorder.at = None
        if recorder.problems:
            raise CannotTrace(recorder.problems[0].reason)
        gradients = [None if gradient is None else memory.read(gradient) for gradient in found]
        narrow = [None if value is None else _narrowed(recorder, value) for value in gradients]
        if any(value is not None and value.type.may_overlap for value in narrow):
            raise CannotTrace("a gradient overlaps itself in memory")
    _require_straight(recorder, name)
    backward = memory.nodes[start:]
    if any(node.effect for node in backward):
        raise CannotTrace("random numbers are drawn while gradients are computed")
    distinct = tuple(dict.fromkeys(gradient for gradient in narrow if gradient is not None))
    values = tuple([value for value, _ in results])
    graph = Graph(
        (*primals, *tangent_values), tuple(memory.nodes), (*values, *distinct), writes, dict(recorder.constants), name
    )
    kept = _kept(memory.nodes, backward)
    joint = JointGraph(
        graph,
        len(primals),
        len(values),
        differentiated,
        tuple([None if gradient is None else distinct.index(gradient) for gradient in narrow]),
        tuple([None if gradient is None else gradient.type.shape for gradient in gradients]),
        frozenset([number for number, value in enumerate(primals) if value in kept]),
        frozenset([number for number, value in enumerate(values) if value in kept]),
    )
    forward = replace(graph, inputs=primals, nodes=graph.nodes[:start], outputs=values)
    return joint, forward, returned, frozenset([number for number, value in enumerate(primals) if value in written])


def _require_straight(recorder: Recorder, name: str) -> None:
    if open_looks(recorder.recording(name)) or recorder.escapes.on_call is not None:
        raise CannotTrace("gradients are wanted, and Python looks at what tensors hold: call it under torch.no_grad()")


def _results(
    recorder: Recorder, items: Sequence[torch.Tensor | float], primals: tuple[Value, ...]
) -> tuple[list[tuple[Value, torch.Tensor | None]], tuple[Returned, ...]]:
    """What the forward has to return, with its tensors, and how each of `items` comes from it."""
    found: dict[Value, torch.Tensor | None] = {}
    returned: list[Returned] = []
    storages: dict[int, bool] = {}
    for item in items:
        root = recorder.locate(item)
        if root.input is not None:
            assert isinstance(item, torch.Tensor)
            if item.requires_grad and root.view is not None:
                raise CannotTrace("a view of an argument that requires a gradient is returned")
            detached = root.input.requires_grad and not item.requires_grad
            number = next(n for n, (_, tensor) in enumerate(recorder.memory.inputs) if tensor is root.input)
            returned.append(Returned(True, number, root.view, detached))
            continue
        value, view = root.root, root.view
        if isinstance(item, torch.Tensor):
            if item.requires_grad and item.grad_fn is None:
                raise CannotTrace("a tensor that requires a gradient is made in the call")
            if item.requires_grad:  # a view would be another node of autograd's graph
                value, view = recorder.memory.read(item), None
            key = item.untyped_storage()._cdata
            if item.requires_grad and tensor_type(item).may_overlap:
                raise CannotTrace("a result that requires a gradient overlaps itself in memory (it is expanded)")
            if storages.get(key, False) or (key in storages and item.requires_grad):
                raise CannotTrace("results that require gradients share memory")
            storages[key] = item.requires_grad
        found[value] = item if isinstance(item, torch.Tensor) else None
        returned.append(Returned(False, list(found).index(value), view))
    return list(found.items()), tuple(returned)


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
