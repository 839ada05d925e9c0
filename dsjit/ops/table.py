"""The op table: what dsjit knows of each ATen overload."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch._ops import OpOverload

from dsjit.ir.dtypes import FLOAT8, KERNEL_DTYPES
from dsjit.ir.graph import Node, Value
from dsjit.ops import reductions, views
from dsjit.ops.decompositions import DECOMPOSITION_ROWS
from dsjit.ops.pointwise import POINTWISE_ROWS
from dsjit.ops.row import Decomposition, OpRow, Pointwise, Reduction, View

__all__ = ["OP_TABLE", "can_hold", "is_pointwise", "row_of", "rule_of"]

OP_TABLE: Final[Mapping[str, OpRow]] = MappingProxyType(
    {**POINTWISE_ROWS, **reductions.ROWS, **views.ROWS, **DECOMPOSITION_ROWS}
)
"""Rows by overload name (`aten.add.Tensor`)."""

_BY_QUALIFIED_NAME: Final[Mapping[str, OpRow]] = {
    name.replace(".", "::", 1).removesuffix(".default"): row for name, row in OP_TABLE.items()
}
"""Rows by the name that an `OpOverload` carries: `aten::add.Tensor`, `aten::abs`."""


aten = torch.ops.aten

_CONVERSIONS: Final[frozenset[Callable[..., Any]]] = frozenset(
    {aten._to_copy.default, aten.clone.default, aten.copy.default}
)
"""What kernels do with numbers of float8."""


def row_of(op: Callable[..., Any]) -> OpRow | None:
    """The row of an overload; None when it has none or is not an `OpOverload`."""
    if not isinstance(op, OpOverload):
        return None
    return _BY_QUALIFIED_NAME.get(op._name)


def is_pointwise(op: Callable[..., Any]) -> bool:
    """Whether the row of an overload says that it computes each element from those at its place, numbers included."""
    row = row_of(op)
    return row is not None and isinstance(row.rule, Pointwise)


def rule_of(node: Node) -> Pointwise | Reduction | View | Decomposition | None:
    """How to lower this call, or None to run it as a library call.

    A rule covers the call when all operands and outputs have dtypes that kernels hold (views: any dtype), nothing is
    drawn at random, what is mutated is what a Decomposition gives anew, and the row's own condition holds.
    """
    row = row_of(node.op)
    if row is None or node.effect or (row.when is not None and not row.when(node)):
        return None
    if node.mutates and not (isinstance(row.rule, Decomposition) and row.rule.updates == node.mutates):
        return None
    if isinstance(row.rule, View):
        return row.rule
    return row.rule if all(can_hold(node.op, value) for value in (*node.inputs(), *node.outputs)) else None


def can_hold(op: Callable[..., Any], value: Value) -> bool:
    """Whether kernels hold the dtype of an operand or of a result of `op`."""
    return value.type.dtype in KERNEL_DTYPES or (value.type.dtype in FLOAT8 and op in _CONVERSIONS)
