"""Drops checks of values that cannot change: they depend on no input and draw no random number.

Why: library code reads the content of tensors that it made itself from sizes (position ids, masks). Their content is
the same on every run of this Graph, so there is nothing to check.

Before:
    def graph(x0: f32[2]):
        t1 = aten.arange.default(4)
        t2 = aten.add.Tensor(x0, 1)
        assert torch.equal(t1, torch.tensor([0, 1, 2, 3], dtype=torch.int64).reshape((4,)))
        return t2
After:
    def graph(x0: f32[2]):
        t1 = aten.arange.default(4)
        t2 = aten.add.Tensor(x0, 1)
        return t2
"""

from __future__ import annotations

from dataclasses import replace

from dsjit.ir.graph import Graph, Value
from dsjit.passes.rewrite import inputs_of, is_reproducible

__all__ = ["drop_checks"]


def drop_checks(graph: Graph) -> Graph:
    """`graph` without the checks whose outcome is settled. Linear in the number of nodes."""
    if not graph.checks:
        return graph
    varying: set[Value] = set(graph.inputs)
    for node in graph.nodes:
        if not is_reproducible(node) or not varying.isdisjoint(inputs_of(node)):
            varying.update(node.outputs)
    kept = tuple(check for check in graph.checks if check.value in varying)
    return graph if len(kept) == len(graph.checks) else replace(graph, checks=kept)
