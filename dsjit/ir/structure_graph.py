"""When two Graphs are the same program: a key that forgets names and ids, but not source lines."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping

import torch

from dsjit.ir.graph import Arg, Graph, Node, Value

__all__ = ["argument_structure", "constant_digest", "graph_structure"]


def graph_structure(graph: Graph, *, names: Mapping[int, int] | None = None) -> Hashable:
    """Equal for Graphs that differ only in their names and in the ids of their Values.

    names: by the ids of inputs, which inputs count as the same ones; those that no node takes, outputs and writes then
        do not count (two runs may want different results of the same nodes).
    The ops are meant by identity: a key is good as long as a Graph that has it is alive. Linear in nodes and constants.
    """
    numbers: dict[Value, int] = {}
    given = {} if names is None else {value: -1 - names[value.id] for value in graph.inputs}

    def number(value: Value) -> int:
        return given[value] if value in given else numbers.setdefault(value, len(numbers))

    inputs = tuple([(number(value), value.type) for value in graph.inputs])
    content = graph.constants.items()
    constants = tuple([(number(value), value.type, constant_digest(tensor)) for value, tensor in content])
    nodes = tuple(
        [
            (
                id(node.op),
                _key(node.args, number),
                tuple([(name, _key(arg, number)) for name, arg in node.kwargs.items()]) if node.kwargs else (),
                tuple([(number(value), value.type) for value in node.outputs]),
                node.source,
                node.mutates,
                node.effect,
            )
            for node in graph.nodes
        ]
    )
    if names is not None:
        return nodes, constants
    outputs = tuple([number(value) for value in graph.outputs])
    writes = tuple([(number(write.target), number(write.value), write.counted) for write in graph.writes])
    donated = tuple([number(value) for value in graph.inputs if value in graph.donated])
    return inputs, constants, nodes, outputs, writes, donated


def _key(arg: Arg, number: Callable[[Value], int]) -> Hashable:
    """Tells apart 1, 1.0 and True, and 0.0 and -0.0."""
    kind = type(arg)
    if kind is Value:
        return Value, number(arg)
    if kind is tuple:
        return tuple([_key(item, number) for item in arg])
    return (kind, repr(arg)) if kind in (float, complex) else (kind, arg)


def argument_structure(node: Node) -> Hashable:
    """Equal for nodes of one op and equal arguments, whatever Values they take."""

    def anything(value: Value) -> int:
        return 0

    named = [(name, _key(arg, anything)) for name, arg in node.kwargs.items()]
    return id(node.op), _key(node.args, anything), tuple(named)


def constant_digest(tensor: torch.Tensor) -> bytes:
    content = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return hashlib.blake2b(content.numpy().tobytes(), digest_size=20).digest()
