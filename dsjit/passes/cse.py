"""Common subexpression elimination.

Why: eager code computes the same thing twice without noticing: each of 32 layers transposes its mask, each step of a
loop transposes the same weight, q, k and v each cast one input. Two nodes are equal when op, arguments and result
types are; arguments are compared with their type and their bits (1, True, 1.0, 0.0 and -0.0 are five different
things, a NaN is equal to itself). Two outputs that the caller could tell apart by writing to one stay apart.

Before:
    def graph(x0: f32[4]):
        t1 = aten.exp.default(x0)
        t2 = aten.exp.default(x0)
        t3 = aten.add.Tensor(t1, t2)
        return t3
After:
    def graph(x0: f32[4]):
        t1 = aten.exp.default(x0)
        t2 = aten.add.Tensor(t1, t1)
        return t2
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from types import NoneType
from typing import Final

from dsjit.ir.graph import Arg, Graph, Node, Value
from dsjit.ops.properties import is_pure
from dsjit.passes.rewrite import rebuild, substitute
from dsjit.passes.storage import Storages

__all__ = ["eliminate_common_subexpressions"]


def eliminate_common_subexpressions(graph: Graph) -> Graph:
    """The Graph with equal pure nodes computed once. Linear time."""
    storages = Storages(graph)
    mapping: dict[Value, Value] = {}
    seen: dict[Hashable, Node] = {}
    nodes: list[Node] = []
    for original in graph.nodes:
        node = substitute(original, mapping)
        if is_pure(node):
            first = seen.setdefault(_key(node), node)
            if first is not node and _merge(node, first, storages, mapping):
                continue
        nodes.append(node)
    return rebuild(graph, nodes, mapping) if mapping else graph


def _merge(node: Node, first: Node, storages: Storages, mapping: dict[Value, Value]) -> bool:
    pairs = list(zip(node.outputs, first.outputs, strict=True))
    if not all(storages.may_replace(old, new) for old, new in pairs):
        return False
    for old, new in pairs:
        storages.replace(old, new)
        mapping[old] = new
    return True


def _key(node: Node) -> Hashable:
    types = [(value.type.strides, value.type.dtype) for value in node.outputs]
    kwargs = tuple([(name, _arg_key(node.kwargs[name])) for name in sorted(node.kwargs)]) if node.kwargs else ()
    return (id(node.op), _arg_key(node.args), kwargs, *types)


_PLAIN: Final[frozenset[type]] = frozenset({Value, int, NoneType})
"""Types whose equality tells all: no two different numbers of one of them are equal."""


def _arg_key(arg: Arg) -> Hashable:
    kind = type(arg)
    if kind is tuple:
        for item in arg:
            if type(item) not in _PLAIN:
                return tuple([_arg_key(item) for item in arg])
        return arg  # type: ignore[no-any-return]
    if kind in _PLAIN:
        return arg  # type: ignore[no-any-return]
    if kind is float:
        return (float, struct.pack("<d", arg))
    if kind is complex:
        return (complex, struct.pack("<dd", arg.real, arg.imag))
    return (kind, arg)
