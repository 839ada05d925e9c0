"""Whether a Kernel is a softmax over rows of something, told from what its statements compute."""

from __future__ import annotations

import struct
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf

import torch

from dsjit.codegen.nest import has_gathers
from dsjit.codegen.operands import operand_statements
from dsjit.ir.kernel import Apply, Axis, Cast, Check, Constant, IndexValue, InRange, Kernel, Load, Reduce, Stmt, Store

__all__ = ["Softmax", "softmax_of"]


@dataclass(frozen=True, slots=True)
class Softmax:
    """statements: what makes `score`, an element of a row in float32, over `axes`. guarded: whether a row of nothing
    but -inf gives 0, and not NaN."""

    axes: tuple[Axis, ...]
    statements: tuple[Stmt, ...]
    score: str
    guarded: bool


def softmax_of(kernel: Kernel) -> Softmax | None:
    """The softmax that is all that the Kernel stores; None when it is none, and when it gathers."""
    blocks = [block for block in kernel.blocks if block.axes]
    written = [param.name for param in kernel.params if param.access != "read"]
    if kernel.sizes or len(written) != 1 or len({block.axes for block in blocks}) != 1:
        return None
    if any(has_gathers(block.body) for block in kernel.blocks):
        return None
    top = next((s for s in blocks[0].body if isinstance(s, Reduce) and s.kind == "max"), None)
    if top is None or top.dtype is not torch.float32:
        return None
    terms = _Terms()
    for block in kernel.blocks:
        for statement in block.body:
            terms.add(statement)
    score, result = terms.named[top.arg], terms.stored[written[0]]
    result = terms.casts.get(result, result)
    guarded = result == terms.softmax(score, guarded=True)
    if not guarded and result != terms.softmax(score, guarded=False):
        return None
    made: dict[str, Stmt] = {}
    for block in kernel.blocks:
        if block.axes not in ((), blocks[0].axes):
            continue
        made.update({s.result: s for s in block.body if not isinstance(s, Store | Reduce | Check)})
        if block is blocks[0]:
            break
    return Softmax(
        (*kernel.outer, *blocks[0].axes), tuple(operand_statements(top.arg, made).values()), top.arg, guarded
    )


@dataclass(slots=True)
class _Terms:
    """Equal terms have equal numbers; what was stored and is loaded again is the same term. casts: what was converted,
    by what it was converted to."""

    numbers: dict[Hashable, int] = field(default_factory=dict)
    named: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    casts: dict[int, int] = field(default_factory=dict)

    def add(self, statement: Stmt) -> None:
        if isinstance(statement, Check):  # which computes nothing
            return
        if isinstance(statement, Store):
            self.stored[statement.param] = self.named[statement.arg]
            return
        self.named[statement.result] = term = self._term(statement)
        if isinstance(statement, Cast):
            self.casts[term] = self.named[statement.arg]

    def _term(self, statement: Stmt) -> int:
        match statement:
            case Apply():
                return self.op(statement.op, *[self.named[arg] for arg in statement.args])
            case Cast():
                return self.op(f"cast {statement.dtype}", self.named[statement.arg])
            case Reduce():
                return self.op(f"reduce {statement.kind}", self.named[statement.arg])
            case Constant():
                return self.number(statement.value, statement.dtype)
            case Load() if statement.param in self.stored:
                return self.stored[statement.param]
            case Load():
                mask = None if statement.mask is None else self.named[statement.mask]
                return self._number(("load", statement.param, statement.index, mask, statement.other))
            case IndexValue():
                return self._number(("index", statement.index))
            case InRange():
                return self._number(("in range", statement.index, statement.low, statement.high))
        raise TypeError(statement)

    def _number(self, key: Hashable) -> int:
        return self.numbers.setdefault(key, len(self.numbers))

    def op(self, name: str, *args: int) -> int:
        return self._number((name, *args))

    def number(self, value: object, dtype: torch.dtype) -> int:
        exact = struct.pack("<d", value) if isinstance(value, float | int) else value
        return self._number(("constant", exact, dtype))

    def softmax(self, score: int, guarded: bool) -> int:
        """As `dsjit.ops.decompositions.softmax` writes it."""
        exponential = self.op("exp", self.op("sub", score, self.op("reduce max", score)))
        one = self.number(1.0, torch.float32)
        result = self.op("mul", exponential, self.op("div", one, self.op("reduce sum", exponential)))
        if not guarded:
            return result
        nothing = self.op("reduce all", self.op("eq", score, self.number(-inf, torch.float32)))
        return self.op("select", nothing, self.number(0.0, torch.float32), result)
