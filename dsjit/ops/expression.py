"""Scalar expressions written as formulas: `x / (1 + exp(-x))` instead of nested builder calls.

An `Expr` pairs a `ScalarBuilder` with one of its scalars. Operators and functions append to the builder; a Python
number next to an `Expr` becomes a constant in its dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from dsjit.ops.row import Scalar, ScalarBuilder

__all__ = ["Expr", "Operand", "apply", "formula", "select"]

Number: TypeAlias = float | int | bool


@dataclass(slots=True, eq=False)
class Expr:
    """A scalar of `builder` that can be computed with."""

    builder: ScalarBuilder
    scalar: Scalar

    @property
    def dtype(self) -> torch.dtype:
        return self.builder.dtype_of(self.scalar)

    def const(self, value: Number) -> Expr:
        """A constant in the dtype of this Expr."""
        return Expr(self.builder, self.builder.const(value, self.scalar))

    def cast(self, dtype: torch.dtype) -> Expr:
        return Expr(self.builder, self.builder.cast(self.scalar, dtype))

    def _with(self, op: str, other: Operand) -> Expr:
        b = self.builder
        right = other.scalar if isinstance(other, Expr) else b.const(other, self.scalar)
        return Expr(b, b.op(op, self.scalar, right))

    def _after(self, op: str, other: Number) -> Expr:
        return self.const(other)._with(op, self)

    def __add__(self, other: Operand) -> Expr:
        return self._with("add", other)

    def __radd__(self, other: Number) -> Expr:
        return self._after("add", other)

    def __sub__(self, other: Operand) -> Expr:
        return self._with("sub", other)

    def __rsub__(self, other: Number) -> Expr:
        return self._after("sub", other)

    def __mul__(self, other: Operand) -> Expr:
        return self._with("mul", other)

    def __rmul__(self, other: Number) -> Expr:
        return self._after("mul", other)

    def __truediv__(self, other: Operand) -> Expr:
        return self._with("div", other)

    def __rtruediv__(self, other: Number) -> Expr:
        return self._after("div", other)

    def __neg__(self) -> Expr:
        return apply("neg", self)

    def __invert__(self) -> Expr:
        return apply("not", self)

    def __and__(self, other: Operand) -> Expr:
        return self._with("and", other)

    def __or__(self, other: Operand) -> Expr:
        return self._with("or", other)

    def __xor__(self, other: Operand) -> Expr:
        return self._with("xor", other)

    def __lt__(self, other: Operand) -> Expr:
        return self._with("lt", other)

    def __le__(self, other: Operand) -> Expr:
        return self._with("le", other)

    def __gt__(self, other: Operand) -> Expr:
        return self._with("gt", other)

    def __ge__(self, other: Operand) -> Expr:
        return self._with("ge", other)

    def equals(self, other: Operand) -> Expr:
        return self._with("eq", other)

    def differs(self, other: Operand) -> Expr:
        return self._with("ne", other)


Operand: TypeAlias = Expr | Number


def apply(op: str, first: Expr, *rest: Operand) -> Expr:
    """Apply the row `op` of `ir.scalar.SCALAR_OPS`; numbers become constants in the dtype of `first`."""
    b = first.builder
    others = [arg.scalar if isinstance(arg, Expr) else b.const(arg, first.scalar) for arg in rest]
    return Expr(b, b.op(op, first.scalar, *others))


def select(condition: Expr, chosen: Operand, otherwise: Operand) -> Expr:
    """`chosen if condition else otherwise`; at least one of the two is an Expr, and gives a number its dtype."""
    like = chosen if isinstance(chosen, Expr) else otherwise
    if not isinstance(like, Expr):
        raise TypeError("select needs an Expr on one side: two numbers have no dtype")
    b = condition.builder
    sides = [arg.scalar if isinstance(arg, Expr) else b.const(arg, like.scalar) for arg in (chosen, otherwise)]
    return Expr(b, b.op("select", condition.scalar, *sides))


def formula(function: Callable[..., Expr]) -> Callable[..., Scalar]:
    """The `Pointwise.expression` that computes `function(*operands as Expr, **rest)`; an absent operand stays None."""

    def expression(b: ScalarBuilder, *operands: Scalar, **rest: Any) -> Scalar:
        lifted = [None if operand is None else Expr(b, operand) for operand in operands]
        return function(*lifted, **rest).scalar

    return expression
