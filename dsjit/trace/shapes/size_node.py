"""What is behind a size that is open while a function is rehearsed: its value in each run."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["SizeNode", "SizeRuns"]


class SizeRuns(Protocol):
    """The runs in lockstep, which note what Python asks of sizes (see `trace.shapes.lockstep`)."""

    def abandon(self, reason: str) -> BaseException: ...

    def require_number(self, node: SizeNode) -> Any: ...

    def decide(self, node: SizeNode) -> bool: ...

    def divided(self, dividend: SizeNode, divisor: SizeNode, result: SizeNode) -> SizeNode: ...

    def bounded(self, result: SizeNode) -> SizeNode: ...


class SizeNode:
    """What is behind a `torch.SymInt` or `torch.SymBool`: a value for each run, and how it comes from the sizes.

    text: a Python expression in s0, s1, ...
    """

    def __init__(self, run: SizeRuns, values: tuple[Any, ...], text: str) -> None:
        self.run = run
        self.values = values
        self.text = text

    # The protocol of torch.fx.experimental.sym_node.

    def is_int(self) -> bool:
        return type(self.values[0]) is int

    def is_bool(self) -> bool:
        return type(self.values[0]) is bool

    def is_float(self) -> bool:
        return False

    def is_symbolic(self) -> bool:
        return True

    def is_constant(self) -> bool:
        return False

    def is_nested_int(self) -> bool:
        return False

    def has_hint(self) -> bool:
        return True

    def maybe_as_int(self) -> None:
        return None

    def wrap_int(self, number: int) -> SizeNode:
        return SizeNode(self.run, (number,) * len(self.values), repr(number))

    def wrap_bool(self, truth: bool) -> SizeNode:
        return SizeNode(self.run, (truth,) * len(self.values), repr(truth))

    def guard_int(self, file: str, line: int) -> int:
        return self.int_()

    def guard_bool(self, file: str, line: int) -> bool:
        return self.bool_()

    def int_(self) -> int:
        return int(self.run.require_number(self))

    def bool_(self) -> bool:
        return self.run.decide(self)

    def _graph_repr(self) -> str:
        return str(self.run.require_number(self))

    def __getattr__(self, name: str) -> Any:
        if name == "str":
            return self._graph_repr
        if name.startswith("__"):
            raise AttributeError(name)
        raise self.run.abandon(f"the size {self.text} takes part in {name}")

    def _unary(self, function: Callable[[Any], Any], sign: str) -> SizeNode:
        return SizeNode(self.run, tuple([function(value) for value in self.values]), f"({sign}{self.text})")

    def _binary(self, other: SizeNode, function: Callable[[Any, Any], Any], sign: str) -> SizeNode:
        if not isinstance(other, SizeNode):
            raise self.run.abandon(f"the size {self.text} meets a symbol of another tracer")
        try:
            values = tuple([function(a, b) for a, b in zip(self.values, other.values, strict=True)])
        except ZeroDivisionError:
            raise self.run.abandon(f"the size {self.text} is divided by zero") from None
        text = f"{sign}({self.text}, {other.text})" if sign.isalpha() else f"({self.text} {sign} {other.text})"
        return SizeNode(self.run, values, text)

    def neg(self) -> SizeNode:
        return self._unary(operator.neg, "-")

    def pos(self) -> SizeNode:
        return self

    def add(self, other: SizeNode) -> SizeNode:
        return self._binary(other, operator.add, "+")

    def sub(self, other: SizeNode) -> SizeNode:
        return self._binary(other, operator.sub, "-")

    def mul(self, other: SizeNode) -> SizeNode:
        return self._binary(other, operator.mul, "*")

    def mod(self, other: SizeNode) -> SizeNode:
        return self.run.divided(self, other, self._binary(other, operator.mod, "%"))

    def int_floordiv(self, other: SizeNode) -> SizeNode:
        return self.run.divided(self, other, self._binary(other, operator.floordiv, "//"))

    def lshift(self, other: SizeNode) -> SizeNode:
        return self._binary(other, operator.lshift, "<<")

    def rshift(self, other: SizeNode) -> SizeNode:
        power = SizeNode(self.run, tuple([1 << value for value in other.values]), f"(1 << {other.text})")
        return self.int_floordiv(power)

    def pow_by_natural(self, other: SizeNode) -> SizeNode:
        return self._binary(other, operator.pow, "**")

    def sym_max(self, other: SizeNode) -> SizeNode:
        return self.run.bounded(self._binary(other, max, "max"))

    def sym_min(self, other: SizeNode) -> SizeNode:
        return self.run.bounded(self._binary(other, min, "min"))

    def eq(self, other: SizeNode) -> SizeNode:
        return self._binary(other, operator.eq, "==")

    def ne(self, other: SizeNode) -> SizeNode:
        return self._binary(other, operator.ne, "!=")

    def lt(self, other: SizeNode) -> SizeNode:
        return self._binary(other, operator.lt, "<")

    def le(self, other: SizeNode) -> SizeNode:
        return self._binary(other, operator.le, "<=")

    def gt(self, other: SizeNode) -> SizeNode:
        return self._binary(other, operator.gt, ">")

    def ge(self, other: SizeNode) -> SizeNode:
        return self._binary(other, operator.ge, ">=")

    def sym_not(self) -> SizeNode:
        return self._unary(operator.not_, "not ")
