"""What it takes to compute a node a second time, in modelled seconds.

A roofline (Williams, Waterman and Patterson, 2009): a node takes as long as its arithmetic at the rate of the
processor, or as its traffic at the rate of the memory. The two rates are those of a machine with two cores and AVX-512;
decisions depend on their quotient, which is about the same on others.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from dsjit.ir.graph import Node, Value
from dsjit.ops.properties import shares_memory
from dsjit.passes.rewrite import inputs_of

__all__ = ["BYTES_PER_SECOND", "FLOPS_PER_SECOND", "is_product", "recompute_seconds"]

aten = torch.ops.aten

FLOPS_PER_SECOND: Final = 150e9
"""float32 multiplications and additions of a matrix product."""

BYTES_PER_SECOND: Final = 15e9
"""Read and written."""

SECONDS_PER_CALL: Final = 5e-6
"""Of one more step in a program."""

_PRODUCTS: Final = {
    aten.mm.default._name: 0,
    aten.bmm.default._name: 0,
    aten.addmm.default._name: 1,
    aten.baddbmm.default._name: 1,
}
"""Matrix products, with the position of the left matrix."""

_CONVOLUTION: Final[str] = aten.convolution.default._name

_ATTENTION: Final[str] = aten._scaled_dot_product_flash_attention_for_cpu.default._name


def is_product(node: Node) -> bool:
    """Whether the node is a matrix product, with something added or not."""
    return getattr(node.op, "_name", None) in _PRODUCTS


def recompute_seconds(node: Node) -> float:
    """Modelled seconds; views take none."""
    if shares_memory(node.op):
        return 0.0
    traffic = sum(value.type.nbytes for value in (*dict.fromkeys(inputs_of(node)), *node.outputs))
    return SECONDS_PER_CALL + max(_flops(node) / FLOPS_PER_SECOND, traffic / BYTES_PER_SECOND)


def _flops(node: Node) -> float:
    name = getattr(node.op, "_name", None)
    if name in _PRODUCTS:
        return 2.0 * node.output.type.numel * _shape(node.args[_PRODUCTS[name]])[-1]
    if name == _CONVOLUTION:
        return 2.0 * node.output.type.numel * math.prod(_shape(node.args[1])[1:])
    if name == _ATTENTION:  # the products of queries and keys, and with values
        return 4.0 * math.prod(_shape(node.args[0])) * _shape(node.args[1])[-2]
    return 0.0


def _shape(value: Value) -> tuple[int, ...]:
    return value.type.shape
