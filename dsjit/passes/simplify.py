"""Algebraic simplification, by the rules of `passes.rules`.

Why: user code, decompositions and broadcasting helpers leave identities behind: views to the shape that is already
there, copies of what nobody else can write to, casts back and forth. Only rewrites that give eager's bits for every
input stay in: `x * 1` is x, `x * 0` is not 0 (NaN, infinities, -0.0), `x + 0.0` is not x (-0.0).

Before:
    def graph(x0: f32[2, 3]):
        t1 = aten.neg.default(x0)
        t2 = aten.neg.default(t1)
        t3 = aten.mul.Tensor(t2, 1)
        t4 = aten.view.default(t3, [6])
        t5 = aten.view.default(t4, [3, 2])
        t6 = aten.exp.default(t5)
        return t6
After:
    def graph(x0: f32[2, 3]):
        t1 = aten.neg.default(x0)
        t2 = aten.view.default(x0, [6])
        t3 = aten.view.default(x0, [3, 2])
        t4 = aten.exp.default(t3)
        return t4
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from dsjit.ir.graph import Graph, Node, Value
from dsjit.passes.rewrite import rebuild, substitute
from dsjit.passes.rules import RULES, Rule
from dsjit.passes.storage import Storages

__all__ = ["simplify"]


def simplify(graph: Graph, rules: Sequence[Rule] = RULES) -> Graph:
    """Apply `rules` to each node until none matches, in one sweep from inputs to outputs. Linear time.

    What becomes unused stays, for dead code elimination.
    """
    table = _by_op(tuple(rules))
    storages: Storages | None = None
    mapping: dict[Value, Value] = {}
    producers: dict[Value, Node] = {}
    nodes: list[Node] = []
    changed = False
    for original in graph.nodes:
        node = substitute(original, mapping)
        candidates = table.get(id(node.op))
        if candidates is not None and not node.mutates:
            storages = storages or Storages(graph)
            result = _rewrite(node, table, producers, storages)
            if isinstance(result, Value):
                storages.replace(node.outputs[0], result)
                mapping[node.outputs[0]] = result
                continue
            changed = changed or result is not node
            node = result
        nodes.append(node)
        for value in node.outputs:
            producers[value] = node
    return rebuild(graph, nodes, mapping) if changed or mapping else graph


def _rewrite(
    node: Node,
    table: Mapping[int, tuple[Rule, ...]],
    producers: Mapping[Value, Node],
    storages: Storages,
) -> Node | Value:
    """The Value that `node` equals, or the node to compute it by. Ends, as each rule shortens what it matched."""
    progress = True
    while progress:
        progress = False
        for rule in table.get(id(node.op), ()):
            result = rule.match(node, producers)
            if isinstance(result, Value):
                if storages.may_replace(node.outputs[0], result):
                    return result
            elif result is not None:
                node, progress = result, True
                break
    return node


@cache
def _by_op(rules: tuple[Rule, ...]) -> dict[int, tuple[Rule, ...]]:
    """The rules for each op, by id: hashing an OpOverload runs Python code."""
    table: dict[int, tuple[Rule, ...]] = {}
    for rule in rules:
        for op in rule.ops:
            table[id(op)] = (*table.get(id(op), ()), rule)
    return table
