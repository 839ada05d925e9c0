"""Hands masks from the forward to the backward as bits.

Why: whether an element was dropped, or was positive, is one bit; a boolean takes a byte.

`partition` cuts this where t2 is kept. (In the example, masks of 16 elements are large enough.)

Before:
    def graph(x0: f32[2, 8], x1: f32[2, 8]):
        t2 = draw_mask([2, 8], 0.9)
        t3 = aten.mul.Tensor(x0, t2)
        t4 = aten.mul.Tensor(x1, t2)
        return t3, t4
After:
    def graph(x0: f32[2, 8]):
        t1 = draw_mask([2, 8], 0.9)
        t2 = aten.mul.Tensor(x0, t1)
        t3 = pack_mask(t1)
        return t2, t3
    def graph_backward(x0: u8[2], x1: f32[2, 8]):
        t2 = unpack_mask(x0, [2, 8])
        t3 = aten.mul.Tensor(x1, t2)
        return t3
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch

from dsjit.ir.graph import Graph, Node, TensorType, Value
from dsjit.ops.masks import pack_mask, unpack_mask
from dsjit.passes.partition import Partition

__all__ = ["pack_masks"]

LARGE: Final = 4096
"""Elements of a mask from which it is packed: fewer are not worth two more steps."""


def pack_masks(halves: Partition, large: int = LARGE) -> Partition:
    """The same halves, with large masks kept as bits. What the caller holds as well stays; so do masks on GPUs, whose
    kernels read bytes at memory's rate. Linear time."""
    forward, backward = halves.forward, halves.backward
    own = halves.own
    results = len(forward.outputs) - len(own)
    free = max(forward.next_id(), backward.next_id())
    packed: dict[Value, Value] = {}
    made: list[Node] = []
    for value, output in zip(own, forward.outputs[results:], strict=True):
        if _is_large_mask(value.type, large) and output is value:
            packed[value] = Value(free + len(packed), _bits(value.type))
    if not packed:
        return halves
    producers = forward.producers()
    for value, bits in packed.items():
        made.append(Node(pack_mask, (value,), {}, (bits,), producers[value].source))
    outputs = (*forward.outputs[:results], *[packed.get(value, value) for value in forward.outputs[results:]])
    forward = replace(forward, nodes=(*forward.nodes, *made), outputs=outputs)
    backward = replace(
        backward,
        inputs=tuple([packed.get(value, value) for value in backward.inputs]),
        nodes=_unpacked_when_read(backward, {node.args[0]: node for node in made}),
    )
    return replace(halves, forward=forward, backward=backward, kept=tuple([packed.get(v, v) for v in halves.kept]))


def _unpacked_when_read(backward: Graph, packing: Mapping[Value, Node]) -> tuple[Node, ...]:
    """The nodes, with each mask unpacked just before its first reader."""
    waiting = dict(packing)
    nodes: list[Node] = []
    for node in backward.nodes:
        for value in node.inputs():
            if value in waiting:
                packed = waiting.pop(value)
                nodes.append(Node(unpack_mask, (packed.output, value.type.shape), {}, (value,), packed.source))
        nodes.append(node)
    return tuple(nodes)


def _is_large_mask(type_: TensorType, large: int) -> bool:
    on_cpu = type_.device.type == "cpu"
    return type_.dtype is torch.bool and type_.numel >= large and type_.is_contiguous and on_cpu


def _bits(mask: TensorType) -> TensorType:
    return TensorType((-(-mask.numel // 8),), torch.uint8, (1,), mask.device)
