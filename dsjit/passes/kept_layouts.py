"""Hands images from the forward to the backward in channels-last order.

Why: between convolutions, both halves keep images in that order (`channels_last`). What is kept would be brought into
row-major order at the end of the forward, and back at the beginning of the backward: two copies of most of what a
convolutional network keeps.

`partition` cuts this where t3 is kept.

Before:
    def graph(x0: f32[2, 8, 5, 5], x1: f32[8, 8, 3, 3], x2: f32[2, 8, 5, 5]):
        t3 = aten.convolution.default(x0, x1, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        t4 = aten.convolution.default(t3, x1, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        t5 = aten.mul.Tensor(x2, t3)
        t6 = aten.convolution.default(t5, x1, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        t7 = aten.convolution.default(t6, x1, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        return t4, t7
After:
    def graph(x0: f32[2, 8, 5, 5], x1: f32[8, 8, 3, 3]):
        t2 = aten.convolution.default(x0, x1, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        t3 = aten.convolution.default(t2, x1, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        t4 = aten.clone.default(t2, memory_format=torch.channels_last)
        return t3, t4
    def graph_backward(x0: f32[8, 8, 3, 3], x1: 'f32[2, 8, 5, 5] strides=(200, 1, 40, 8)', x2: f32[2, 8, 5, 5]):
        t3 = aten.clone.default(x1, memory_format=torch.contiguous_format)
        t4 = aten.mul.Tensor(x2, t3)
        t5 = aten.convolution.default(t4, x0, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        t6 = aten.convolution.default(t5, x0, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        return t6
"""

from __future__ import annotations

from dataclasses import replace

import torch

from dsjit.ir.graph import Node, Source, Value
from dsjit.passes.channels_last import is_worthwhile, moved_values
from dsjit.passes.partition import Partition

__all__ = ["keep_channels_last"]

aten = torch.ops.aten


def keep_channels_last(halves: Partition) -> Partition:
    """The same halves, with what both have in channels-last order kept so. What the caller holds as well stays."""
    forward, backward = halves.forward, halves.backward
    ahead = moved_values(forward) if is_worthwhile(backward) else {}
    own = [value for value in halves.kept if value not in halves.shared]
    results = len(forward.outputs) - len(own)
    free = max(forward.next_id(), backward.next_id())
    given: dict[Value, Value] = {}
    taken: dict[Value, Value] = {}
    for value, output in zip(own, forward.outputs[results:], strict=True):
        type_ = ahead.get(output, output.type)
        if type_ != output.type:
            given[output] = taken[value] = Value(free + len(given), type_)
    if not given:
        return halves
    sources = {value: node.source for node in forward.nodes for value in node.outputs}
    copies = [_copy(old, new, torch.channels_last, sources[old]) for old, new in given.items()]
    outputs = (*forward.outputs[:results], *[given.get(value, value) for value in forward.outputs[results:]])
    forward = replace(forward, nodes=(*forward.nodes, *copies), outputs=outputs)
    copies = [_copy(new, old, torch.contiguous_format, sources[old]) for old, new in taken.items()]
    inputs = tuple([taken.get(value, value) for value in backward.inputs])
    backward = replace(backward, inputs=inputs, nodes=(*copies, *backward.nodes))
    return Partition(forward, backward, tuple([taken.get(value, value) for value in halves.kept]), halves.shared)


def _copy(original: Value, copy: Value, order: torch.memory_format, source: Source) -> Node:
    """`channels_last` finds that the copy is there."""
    return Node(aten.clone.default, (original,), {"memory_format": order}, (copy,), source)
