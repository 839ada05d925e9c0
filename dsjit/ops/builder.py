"""`Builder`: how decompositions append Nodes, with inferred types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsjit.ir.graph import UNKNOWN_SOURCE, Arg, Node, Source, TensorType, Value
from dsjit.ops.binding import bind_arguments
from dsjit.ops.inference import pointwise_type, reduction_type
from dsjit.ops.row import Pointwise, Reduction, View
from dsjit.ops.table import row_of

__all__ = ["Builder"]


class Builder:
    """Implements `ops.row.GraphBuilder`; collects the Nodes of one rewritten Node in `nodes`.

    first_id: ids of new Values count up from here; `next_id` is the first one that is still free.
    source: the user's line, given to every new Node.
    """

    __slots__ = ("next_id", "nodes", "source")

    def __init__(self, first_id: int, source: Source = UNKNOWN_SOURCE) -> None:
        self.next_id = first_id
        self.source = source
        self.nodes: list[Node] = []

    def call(self, op: Callable[..., Any], *args: Arg, **kwargs: Arg) -> Value:
        """Append `op`, which has a Pointwise, Reduction or single-output View row, and return its output.

        Raises ValueError when it has none, or when shapes do not fit.
        """
        types = self._infer(op, args, kwargs)
        (value,) = self.call_typed(op, types, *args, **kwargs)
        return value

    def call_typed(
        self, op: Callable[..., Any], types: tuple[TensorType, ...], *args: Arg, **kwargs: Arg
    ) -> tuple[Value, ...]:
        """Append `op`, whose output types the caller states, and return its outputs."""
        first = self.next_id
        outputs = tuple(Value(first + position, type_) for position, type_ in enumerate(types))
        self.next_id = first + len(outputs)
        self.nodes.append(Node(op, args, kwargs, outputs, self.source))
        return outputs

    def _infer(
        self, op: Callable[..., Any], args: tuple[Arg, ...], kwargs: Mapping[str, Arg]
    ) -> tuple[TensorType, ...]:
        row = row_of(op)
        rule = row.rule if row else None
        bound = bind_arguments(op, args, kwargs)
        if isinstance(rule, Pointwise):
            return (pointwise_type(rule, bound),)
        if isinstance(rule, Reduction):
            return (reduction_type(rule, bound),)
        if isinstance(rule, View):
            return rule.types(bound)
        raise ValueError(f"{op} has no row from which to infer the type of its result: use call_typed")
