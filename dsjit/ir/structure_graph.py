"""When two Graphs are the same program: a key that forgets names and ids, but not source lines."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable

import torch

from dsjit.ir.graph import Arg, Graph, Value

__all__ = ["graph_structure"]


def graph_structure(graph: Graph, *, with_ids: bool = False) -> Hashable:
    """Equal for Graphs that differ only in their names and in the ids of their Values.

    with_ids: the ids count too; outputs and writes then do not (two runs may want different results of the same nodes).
    The ops are meant by identity: a key is good as long as a Graph that has it is alive. Linear in nodes and constants.
    """
    numbers: dict[Value, int] = {}

    def number(value: Value) -> int:
        return value.id if with_ids else numbers.setdefault(value, len(numbers))

    inputs = tuple([(number(value), value.type) for value in graph.inputs])
    constants = tuple([(number(value), value.type, _digest(tensor)) for value, tensor in graph.constants.items()])
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
    if with_ids:
        return nodes, constants
    outputs = tuple([number(value) for value in graph.outputs])
    writes = tuple([(number(write.target), number(write.value)) for write in graph.writes])
    return inputs, constants, nodes, outputs, writes


def _key(arg: Arg, number: Callable[[Value], int]) -> Hashable:
    """Tells apart 1, 1.0 and True, and 0.0 and -0.0."""
    kind = type(arg)
    if kind is Value:
        return Value, number(arg)
    if kind is tuple:
        return tuple([_key(item, number) for item in arg])
    return (kind, repr(arg)) if kind in (float, complex) else (kind, arg)


def _digest(tensor: torch.Tensor) -> bytes:
    content = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return hashlib.blake2b(content.numpy().tobytes(), digest_size=20).digest()
