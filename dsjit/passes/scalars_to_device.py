"""Brings scalars from the CPU to the GPU once, and computes with them there.

Why: torch lets an op on a GPU read a tensor of no dimension from the CPU. A learning rate that a program is handed, and
the step counts of optimizers, are such tensors; so are the few ops between them and the update of each parameter, and
each of them is a call of the library's. A kernel cannot read the CPU's memory, so the update falls apart as well. Where
the scalars are on the GPU, it is one kernel. They come in one copy for each dtype, which nobody waits for. What the CPU
wants of them, it still computes itself. Where the host has a Program of its own that runs ahead (`split_host`), nothing
is left to do: this is for the halves of differentiated calls, and for open sizes.

Before:
    def graph(x0: 'f32[8, 4] @cuda:0', x1: f64[()], x2: f64[()]):
        t3 = aten.mul.Tensor(x1, x2)
        t4 = aten.rsub.Scalar(t3, 1.0)
        t5 = aten.mul.Tensor(x0, t4)
        t6 = aten.add.Tensor(t5, x1)
        return t6
After:
    def graph(x0: 'f32[8, 4] @cuda:0', x1: f64[()], x2: f64[()]):
        t3 = aten.stack.default([x1, x2])
        t4 = aten._to_copy.default(t3, device=torch.device('cuda:0'), non_blocking=True)
        t5 = aten.select.int(t4, 0, 0)
        t6 = aten.select.int(t4, 0, 1)
        t7 = aten.mul.Tensor(x1, x2)
        t8 = aten.rsub.Scalar(t7, 1.0)
        t9 = aten.mul.Tensor(t5, t6)
        t10 = aten.rsub.Scalar(t9, 1.0)
        t11 = aten.mul.Tensor(x0, t10)
        t12 = aten.add.Tensor(t11, t5)
        return t12
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from dsjit.ir.graph import UNKNOWN_SOURCE, Graph, Node, TensorType, Value
from dsjit.ops.table import is_pointwise
from dsjit.passes.rewrite import inputs_of, ops_where, rebuild, substitute

__all__ = ["scalars_to_device"]

aten = torch.ops.aten


def scalars_to_device(graph: Graph) -> Graph:
    """Pointwise ops on the one GPU that there is read no tensor of the CPU's any more. Linear time."""
    values = [*graph.inputs, *[value for node in graph.nodes for value in node.outputs]]
    devices = {value.type.device for value in values}
    others = [device for device in devices if device.type != "cpu"]
    return _Mover(graph, others[0]).run() if len(others) == 1 < len(devices) else graph


class _Mover:
    """moved: what is on the GPU, by the scalars on the CPU that it equals."""

    def __init__(self, graph: Graph, device: torch.device) -> None:
        self.graph = graph
        self.device = device
        self.next_id = graph.next_id()
        self.nodes: list[Node] = []
        self.moved: dict[Value, Value] = {}
        self.producers = graph.producers()
        self.pointwise = ops_where(graph.nodes, is_pointwise)

    def run(self) -> Graph:
        readers = {node: scalars for node in self.graph.nodes if (scalars := self._scalars(node))}
        sources = dict.fromkeys(
            source for scalars in readers.values() for scalar in scalars for source in self._sources(scalar)
        )
        if not sources:
            return self.graph
        given = sorted([each for each in sources if each not in self.producers], key=lambda value: value.id)
        for dtype in dict.fromkeys(source.type.dtype for source in given):
            self._bring([source for source in given if source.type.dtype is dtype])
        for node in self.graph.nodes:
            if node in readers:
                node = substitute(node, {scalar: self._on_device(scalar) for scalar in readers[node]})
            self.nodes.append(node)
            for value in node.outputs:
                if value in sources:
                    self._bring([value])
        return rebuild(self.graph, self.nodes, {})

    def _scalars(self, node: Node) -> list[Value]:
        """What a pointwise op on the GPU reads on the CPU."""
        if id(node.op) not in self.pointwise or node.output.type.device != self.device:
            return []
        return [value for value in inputs_of(node) if _is_scalar(value)]

    def _is_movable(self, node: Node) -> bool:
        """Whether it makes one scalar of others."""
        if id(node.op) not in self.pointwise or "device" in node.kwargs or not _is_scalar(node.output):
            return False
        return all(map(_is_scalar, inputs_of(node)))

    def _sources(self, scalar: Value) -> Iterator[Value]:
        """What it is computed from, and must come from the CPU."""
        left, seen = [scalar], {scalar}
        while left:
            value = left.pop()
            node = self.producers.get(value)
            if node is None or not self._is_movable(node):
                yield value
                continue
            left += [each for each in inputs_of(node) if each not in seen]
            seen.update(left)

    def _on_device(self, scalar: Value) -> Value:
        """The scalar on the GPU, computed there."""
        if scalar not in self.moved:
            node = self.producers[scalar]
            own = substitute(node, {value: self._on_device(value) for value in inputs_of(node)})
            found = self._new(replace(scalar.type, device=self.device))
            self.nodes.append(Node(own.op, own.args, own.kwargs, (found,), own.source))
            self.moved[scalar] = found
        return self.moved[scalar]

    def _bring(self, scalars: Sequence[Value]) -> None:
        """Copy scalars of one dtype."""
        first, *others = scalars
        packed, producer = first, self.producers.get(first)
        source = producer.source if producer is not None else UNKNOWN_SOURCE
        if others:
            packed = self._new(replace(first.type, shape=(len(scalars),), strides=(1,)))
            self.nodes.append(Node(aten.stack.default, (tuple(scalars),), {}, (packed,), source))
        there = self._new(replace(packed.type, device=self.device))
        how = {"device": self.device, "non_blocking": True}
        self.nodes.append(Node(aten._to_copy.default, (packed,), how, (there,), source))
        if not others:
            self.moved[first] = there
            return
        for number, scalar in enumerate(scalars):
            self.moved[scalar] = self._new(replace(scalar.type, device=self.device))
            self.nodes.append(Node(aten.select.int, (there, 0, number), {}, (self.moved[scalar],), source))

    def _new(self, type_: TensorType) -> Value:
        self.next_id += 1
        return Value(self.next_id - 1, type_)


def _is_scalar(value: Value) -> bool:
    return value.type.device.type == "cpu" and not value.type.shape
