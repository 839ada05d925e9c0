"""What a scalar expression costs, measured by building it once with a builder that only counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch

from dsjit.fusion.operands import NodeInfo, NodeKind
from dsjit.ir.graph import Node
from dsjit.ir.scalar import SCALAR_OPS
from dsjit.ops.evaluation import evaluate
from dsjit.ops.row import Pointwise, Scalar

__all__ = ["Costs"]

CHEAP: Final[frozenset[str]] = frozenset(
    (
        "add", "sub", "mul", "neg", "abs", "fma", "maximum", "minimum", "fmax", "fmin", "copysign", "floor", "ceil",
        "trunc", "round", "eq", "ne", "lt", "le", "gt", "ge", "select", "signbit", "and", "or", "xor", "not", "shl",
        "shr",
    )
)  # fmt: skip
GATHER: Final = 8
"""Of an element whose place data decide: a load that waits for its index, and what sees to it that this is in range."""

MIDDLING: Final[frozenset[str]] = frozenset(("div", "sqrt", "trunc_div", "floor_div", "trunc_rem", "floor_rem"))


def scalar_cost(op: str) -> int:
    """Weight of one scalar op, in units of an addition: throughput on wide-vector x86 and ARM cores, roughly."""
    if op in CHEAP:
        return 1
    return 4 if op in MIDDLING else 12


@dataclass(slots=True)
class _CountingBuilder:
    """A ScalarBuilder whose scalars are dtypes, and which adds up what is asked of it."""

    total: int = 0

    def op(self, name: str, *args: Scalar) -> Scalar:
        self.total += scalar_cost(name)
        return torch.bool if SCALAR_OPS[name].result == "bool" else args[-1]

    def const(self, value: float | int | bool, like: Scalar) -> Scalar:
        return like

    def constant(self, value: float | int | bool, dtype: torch.dtype) -> Scalar:
        return dtype

    def cast(self, a: Scalar, dtype: torch.dtype) -> Scalar:
        return dtype

    def dtype_of(self, a: Scalar) -> torch.dtype:
        dtype: torch.dtype = a
        return dtype


@dataclass(slots=True)
class Costs:
    """Costs of nodes in scalar-op units, remembered per node."""

    known: dict[Node, int] = field(default_factory=dict)

    def of(self, node: Node, info: NodeInfo) -> int:
        cost = self.known.get(node)
        if cost is None:
            cost = self.known[node] = _cost(node, info)
        return cost

    def is_free(self, node: Node, info: NodeInfo) -> bool:
        """Whether rebuilding the value costs no more than loading it: no operand, or one and a cheap op or cast."""
        if info.kind is not NodeKind.POINTWISE or self.of(node, info) > 1:
            return False
        if not info.operands:
            return True
        own = node.output.type
        return len(info.operands) == 1 and info.operands[0].value.type.nbytes <= 2 * own.nbytes


def _cost(node: Node, info: NodeInfo) -> int:
    if info.kind is NodeKind.GATHER:
        return GATHER
    if not isinstance(info.rule, Pointwise):
        return len(info.operands)
    builder = _CountingBuilder()
    evaluate(info.rule, node, builder, lambda value: value.type.dtype)
    return builder.total
