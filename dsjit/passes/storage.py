"""Which Values share memory, and whose memory the caller gets to see.

A Graph is functional, so inside it a Value and its copy are one and the same. At its border they are not: two
outputs that eager returns as two tensors must not become one, for the caller may write to either; and an output
that eager returns as a fresh tensor must not become a view of an input. `Storages.may_replace` is that rule.
"""

from __future__ import annotations

from dsjit.ir.graph import Graph, Node, Value
from dsjit.ops.properties import shares_memory
from dsjit.passes.rewrite import ops_where

__all__ = ["Storages"]


class Storages:
    """The memory behind each Value of a Graph, kept up to date while a pass replaces Values.

    A Value's root is the Value that owns its memory: a Graph input, a constant, or a node's fresh result.
    """

    __slots__ = ("_bound", "_escaped", "_outputs", "_roots")

    def __init__(self, graph: Graph) -> None:
        self._roots: dict[Value, Value] = {}
        sharing = ops_where(graph.nodes, shares_memory)
        for node in graph.nodes:
            if id(node.op) in sharing:
                self._share(node)
        self._outputs = set(graph.outputs)
        self._escaped = {self.root(value) for value in graph.outputs}
        # A written value is copied to its target when the run ends; an input read that late may have been overwritten.
        self._escaped.update(self.root(write.value) for write in graph.writes)
        self._bound = {*graph.inputs, *graph.constants}

    def define(self, node: Node) -> None:
        """Learn the roots of a node's outputs."""
        if shares_memory(node.op):
            self._share(node)

    def _share(self, node: Node) -> None:
        source = node.args[0] if node.args else None
        if type(source) is not Value:
            source = next(node.inputs(), None)
        if source is not None:
            base = self._roots.get(source, source)
            for value in node.outputs:
                self._roots[value] = base

    def root(self, value: Value) -> Value:
        return self._roots.get(value, value)

    def escapes(self, value: Value) -> bool:
        """Whether the memory of `value` is returned, or copied into an input when the run ends."""
        return self.root(value) in self._escaped

    def may_replace(self, old: Value, new: Value) -> bool:
        """Whether every use of `old` may read `new`, equal in content and type, unseen by the caller."""
        old_root, new_root = self.root(old), self.root(new)
        if old_root not in self._escaped:
            return True
        if old_root is new_root:
            return old not in self._outputs or not (new in self._outputs or new in self._bound)
        return old_root is old and new_root is new and new not in self._bound and new not in self._escaped

    def replace(self, old: Value, new: Value) -> None:
        """Note that every use of `old` now reads `new`."""
        if self.root(old) in self._escaped:
            self._escaped.add(self.root(new))
        if old in self._outputs:
            self._outputs.add(new)
