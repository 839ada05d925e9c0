"""Constructors that the families of pointwise rows share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from dsjit.ir.dtypes import compute_dtype, is_integral
from dsjit.ir.graph import Arg, Node, Value
from dsjit.ops.binding import bind
from dsjit.ops.evaluation import REDUCED
from dsjit.ops.expression import Expr, apply, formula
from dsjit.ops.row import DtypeRule, OpRow, OutputRule, Pointwise

__all__ = [
    "REDUCED",
    "by_name",
    "integer_division_is_safe",
    "not_reduced_precision",
    "only_integers",
    "row",
    "unary",
]


def row(
    name: str,
    function: Callable[..., Expr],
    tensors: tuple[str, ...] = ("self", "other"),
    *,
    dtypes: DtypeRule = "rounded",
    output: OutputRule = "promoted",
    conditions: tuple[str, ...] = (),
    shape_only: tuple[str, ...] = (),
    stepwise: tuple[torch.dtype, ...] = (),
    when: Callable[[Node], bool] | None = None,
) -> OpRow:
    """The row of `aten.<name>`, whose expression is the formula `function`."""
    rule = Pointwise(formula(function), tensors, dtypes, output, conditions, shape_only, stepwise)
    return OpRow(f"aten.{name}", rule, when)


def unary(name: str, op: str) -> OpRow:
    """The row of `aten.<name>.default(self)`, which is the scalar op `op`; integers become floating."""
    return row(f"{name}.default", lambda x: apply(op, x), ("self",), output="float")


def by_name(rows: Iterable[OpRow]) -> Mapping[str, OpRow]:
    """`rows` keyed by name. Raises ValueError when two rows have one name."""
    table: dict[str, OpRow] = {}
    for entry in rows:
        if entry.name in table:
            raise ValueError(f"{entry.name} has two rows")
        table[entry.name] = entry
    return table


def not_reduced_precision(node: Node) -> bool:
    """Applicability of a formula that ATen rounds to bf16 or fp16 in its middle: every other dtype."""
    return compute_dtype(node.output.type.dtype) is node.output.type.dtype


def only_integers(node: Node) -> bool:
    """Applicability of a formula for integers and bool only."""
    dtype = node.output.type.dtype
    return is_integral(dtype) or dtype is torch.bool


def integer_division_is_safe(node: Node) -> bool:
    """False for an integer division whose divisor is not known: ATen raises on a zero, a Kernel cannot."""
    divisor: Arg = bind(node)["other"]
    return not is_integral(node.output.type.dtype) or (not isinstance(divisor, Value) and divisor != 0)
