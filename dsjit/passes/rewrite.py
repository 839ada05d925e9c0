"""What every pass needs to rebuild a Graph: its nodes' inputs, substitution of Values, facts about ops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from dsjit.ir.graph import Arg, Graph, Node, Value

__all__ = [
    "inputs_of",
    "ops_where",
    "rebuild",
    "substitute",
    "substitute_arg",
]


def inputs_of(node: Node) -> list[Value]:
    """`list(node.inputs())`, without the cost of nested generators."""
    found: list[Value] = []
    _collect(node.args, found)
    for arg in node.kwargs.values():
        kind = type(arg)
        if kind is Value:
            found.append(arg)
        elif kind is tuple:
            _collect(arg, found)
    return found


def _collect(args: tuple[Arg, ...], found: list[Value]) -> None:
    for arg in args:
        kind = type(arg)
        if kind is Value:
            found.append(arg)
        elif kind is tuple:
            _collect(arg, found)


def substitute_arg(arg: Arg, mapping: Mapping[Value, Value]) -> Arg:
    """`arg` with each Value that `mapping` holds replaced; the same object when there is none."""
    kind = type(arg)
    if kind is Value:
        return mapping.get(arg, arg)
    if kind is tuple:
        for item in arg:
            kind = type(item)
            if (kind is Value and item in mapping) or (kind is tuple and substitute_arg(item, mapping) is not item):
                return tuple([substitute_arg(item, mapping) for item in arg])
    return arg


def substitute(node: Node, mapping: Mapping[Value, Value]) -> Node:
    """`node` reading `mapping[value]` for each value that `mapping` holds; the same object when there is none."""
    if not mapping:
        return node
    args = substitute_arg(node.args, mapping)
    kwargs = node.kwargs
    if kwargs:
        changed = {name: substitute_arg(arg, mapping) for name, arg in kwargs.items()}
        if any(changed[name] is not arg for name, arg in kwargs.items()):
            kwargs = changed
    if args is node.args and kwargs is node.kwargs:
        return node
    return Node(node.op, args, kwargs, node.outputs, node.source, node.mutates, node.effect)


def ops_where(nodes: Iterable[Node], holds: Callable[[Callable[..., Any]], bool]) -> frozenset[int]:
    """The `id`s of those ops among `nodes` for which `holds`; asks once for each op.

    By id, as hashing an OpOverload runs Python code: a sweep over thousands of nodes would notice.
    """
    ops = {id(node.op): node.op for node in nodes}
    return frozenset([key for key, op in ops.items() if holds(op)])


def rebuild(
    graph: Graph,
    nodes: Iterable[Node],
    mapping: Mapping[Value, Value],
    constants: Mapping[Value, torch.Tensor] | None = None,
) -> Graph:
    """`graph` with other nodes, and with `mapping` applied to its outputs and writes (not to the nodes)."""
    outputs, writes = graph.outputs, graph.writes
    if mapping:
        outputs = tuple([mapping.get(value, value) for value in outputs])
        writes = tuple([replace(w, value=mapping.get(w.value, w.value)) for w in writes])
    return replace(
        graph,
        nodes=tuple(nodes),
        outputs=outputs,
        writes=writes,
        constants=graph.constants if constants is None else constants,
    )
