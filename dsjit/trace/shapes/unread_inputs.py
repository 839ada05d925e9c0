"""Tensors that no op reads, but whose sizes are open: the call is given them, or is asked for their sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dsjit.ir.graph import Graph, TensorType, Value
from dsjit.trace.capture import Conclusion

__all__ = ["with_inputs", "without_unread_inputs"]


def with_inputs(ended: Sequence[Conclusion], types: Sequence[Sequence[TensorType]]) -> list[Conclusion]:
    """The ends of runs in one segment, which take more inputs behind their own.

    types: of these, for each run. They have the same ids in all runs.
    """
    first = max(_graph_of(each).next_id() for each in ended)
    values = [[Value(number, type_) for number, type_ in enumerate(row, first)] for row in types]
    return [_with(each, tuple(row)) for each, row in zip(ended, values, strict=True)]


def without_unread_inputs(graph: Graph) -> Graph:
    """The Graph without the inputs that nobody reads, writes or is given back."""
    read = {value for node in graph.nodes for value in node.inputs()} | set(graph.outputs)
    read |= {value for write in graph.writes for value in (write.target, write.value)}
    return replace(graph, inputs=tuple([value for value in graph.inputs if value in read]))


def _graph_of(ended: Conclusion) -> Graph:
    return ended.segments[0].graph if ended.joint is None else ended.joint.graph


def _with(ended: Conclusion, values: tuple[Value, ...]) -> Conclusion:
    (segment,), recording = ended.segments, ended.recording
    graph = replace(segment.graph, inputs=(*segment.graph.inputs, *values))
    return replace(
        ended,
        segments=(replace(segment, graph=graph),),
        joint=None if ended.joint is None else ended.joint.with_primals(values),
        recording=None if recording is None else replace(recording, inputs=(*recording.inputs, *values)),
    )
