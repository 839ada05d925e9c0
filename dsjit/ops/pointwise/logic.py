"""Comparisons, logical and bitwise ops, shifts, and tests of floating-point class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from dsjit.ir.dtypes import is_floating
from dsjit.ops.expression import Expr, apply
from dsjit.ops.pointwise.families import by_name, only_integers, row
from dsjit.ops.row import OpRow

__all__ = ["ROWS"]


def comparisons(name: str) -> list[OpRow]:
    def compare(x: Expr, y: Expr) -> Expr:
        return apply(name, x, y)

    return [row(f"{name}.{overload}", compare, dtypes="promoted", output="bool") for overload in ("Tensor", "Scalar")]


def bitwise(name: str, op: str, overloads: tuple[str, ...]) -> list[OpRow]:
    def combine(x: Expr, y: Expr) -> Expr:
        return apply(op, x, y)

    return [row(f"{name}.{overload}", combine, when=only_integers) for overload in overloads]


def logical(name: str, function: Callable[..., Expr], tensors: tuple[str, ...]) -> OpRow:
    return row(f"{name}.default", function, tensors, output="bool", conditions=tensors)


def class_test(name: str, of_float: Callable[[Expr], Expr], of_integer: bool) -> OpRow:
    """The row of a test whose answer for every integer is `of_integer`."""

    def test(x: Expr) -> Expr:
        return of_float(x) if is_floating(x.dtype) else x.equals(x) if of_integer else x.differs(x)

    return row(f"{name}.default", test, ("self",), dtypes="as_is", output="bool")


TENSOR_OR_SCALAR: Final = ("Tensor", "Scalar", "Scalar_Tensor")
SHIFTS: Final = ("Tensor", "Tensor_Scalar", "Scalar_Tensor")
OPERATOR: Final = ("Tensor", "Scalar")

ROWS: Final[Mapping[str, OpRow]] = by_name(
    [
        *comparisons("eq"),
        *comparisons("ne"),
        *comparisons("lt"),
        *comparisons("le"),
        *comparisons("gt"),
        *comparisons("ge"),
        logical("logical_and", lambda x, y: x & y, ("self", "other")),
        logical("logical_or", lambda x, y: x | y, ("self", "other")),
        logical("logical_xor", lambda x, y: x ^ y, ("self", "other")),
        logical("logical_not", lambda x: ~x, ("self",)),
        *bitwise("bitwise_and", "and", TENSOR_OR_SCALAR),
        *bitwise("bitwise_or", "or", TENSOR_OR_SCALAR),
        *bitwise("bitwise_xor", "xor", TENSOR_OR_SCALAR),
        *bitwise("__and__", "and", OPERATOR),
        *bitwise("__or__", "or", OPERATOR),
        *bitwise("__xor__", "xor", OPERATOR),
        *bitwise("bitwise_left_shift", "shl", SHIFTS),
        *bitwise("bitwise_right_shift", "shr", SHIFTS),
        *bitwise("__lshift__", "shl", OPERATOR),
        *bitwise("__rshift__", "shr", OPERATOR),
        row("bitwise_not.default", lambda x: ~x, ("self",), when=only_integers),
        class_test("isnan", lambda x: x.differs(x), False),
        class_test("isinf", lambda x: apply("abs", x).equals(math.inf), False),
        class_test("isfinite", lambda x: apply("abs", x) < math.inf, True),
        class_test("isposinf", lambda x: x.equals(math.inf), False),
        class_test("isneginf", lambda x: x.equals(-math.inf), False),
    ]
)
