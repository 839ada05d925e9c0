"""Selection, copies, conversions, and tensors of one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from dsjit.ir.graph import Arg, Node
from dsjit.ops.binding import bind
from dsjit.ops.expression import Expr, select
from dsjit.ops.inference import number_dtype
from dsjit.ops.pointwise.families import by_name, row
from dsjit.ops.row import OpRow, Pointwise, Scalar, ScalarBuilder

__all__ = ["ROWS"]


def masked_fill(x: Expr, mask: Expr, value: Expr) -> Expr:
    return select(mask, value, x)


def copy(x: Expr, **_: Any) -> Expr:
    return x


def copied_dtype(bound: Mapping[str, Arg]) -> torch.dtype:
    dtype: torch.dtype = bound["dtype"] or bound["self"].type.dtype
    return dtype


def same_dtype(bound: Mapping[str, Arg]) -> torch.dtype:
    dtype: torch.dtype = bound["self"].type.dtype
    return dtype


def stays_in_place(node: Node) -> bool:
    """A copy to the same device, in ordinary memory and layout."""
    bound = bind(node)
    device = bound["device"]
    return (
        (device is None or torch.device(device) == node.output.type.device)
        and bound["layout"] in (None, torch.strided)
        and not bound["pin_memory"]
    )


def copies_to_same_device(node: Node) -> bool:
    return all(value.type.device == node.output.type.device for value in node.inputs())


def filled_dtype(bound: Mapping[str, Arg]) -> torch.dtype:
    """`dtype=` when given, else what torch infers from the number (`full`) or the tensor (`full_like`, `new_full`)."""
    if bound["dtype"] is not None:
        dtype: torch.dtype = bound["dtype"]
    elif "self" in bound:
        dtype = bound["self"].type.dtype
    elif "fill_value" in bound:
        dtype = number_dtype(bound["fill_value"])
    else:
        dtype = torch.get_default_dtype()
    return dtype


def constant(value: int) -> Callable[..., Scalar]:
    def expression(b: ScalarBuilder, **_: Any) -> Scalar:
        return b.constant(bool(value), torch.bool)

    return expression


def factory(name: str, value: int | None) -> OpRow:
    """The row of an op that makes a tensor of `value`, or of its argument `fill_value` when None.

    Of a tensor argument (`full_like`, `new_zeros`) only dtype, shape and device matter.
    """
    base, overload = name.split(".")
    shape_only = ("self",) if base.endswith("_like") else ()
    name = f"aten.{base}.{overload}"
    if value is None:
        rule = Pointwise(lambda b, x, **_: x, ("fill_value",), "rounded", filled_dtype, (), shape_only)
    else:
        rule = Pointwise(constant(value), (), "result", filled_dtype, (), shape_only)
    return OpRow(name, rule, stays_in_place)


ROWS: Final[Mapping[str, OpRow]] = by_name(
    [
        row("where.self", select, ("condition", "self", "other"), conditions=("condition",)),
        row("where.ScalarOther", select, ("condition", "self", "other"), conditions=("condition",)),
        row("where.ScalarSelf", select, ("condition", "self", "other"), conditions=("condition",)),
        row("where.Scalar", select, ("condition", "self", "other"), conditions=("condition",)),
        row("masked_fill.Scalar", masked_fill, ("self", "mask", "value"), output="first", conditions=("mask",)),
        row("masked_fill.Tensor", masked_fill, ("self", "mask", "value"), output="first", conditions=("mask",)),
        row("clone.default", copy, ("self",), dtypes="as_is"),
        row("lift_fresh_copy.default", copy, ("self",), dtypes="as_is"),
        row("_to_copy.default", copy, ("self",), dtypes="as_is", output=copied_dtype, when=stays_in_place),
        row("copy.default", copy, ("src",), dtypes="as_is", output=same_dtype,
            shape_only=("self",), when=copies_to_same_device),
        OpRow("aten.zero.default", Pointwise(constant(0), (), "result", same_dtype, (), ("self",))),
        row("fill.Scalar", lambda value: value, ("value",), output=same_dtype,
            shape_only=("self",)),
        row("fill.Tensor", lambda value: value, ("value",), output=same_dtype,
            shape_only=("self",)),
        row("scalar_tensor.default", copy, ("s",), output=lambda bound: bound["dtype"] or torch.get_default_dtype(),
            when=stays_in_place),
        factory("full.default", None),
        factory("zeros.default", 0),
        factory("ones.default", 1),
        factory("full_like.default", None),
        factory("zeros_like.default", 0),
        factory("ones_like.default", 1),
        factory("new_full.default", None),
        factory("new_zeros.default", 0),
        factory("new_ones.default", 1),
    ]
)  # fmt: skip
