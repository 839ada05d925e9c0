"""Kernel: the loop-level IR.

A Kernel is one fused loop nest. `outer` axes are parallel: each point of their product is independent of every
other. At each outer point the `blocks` run in order. A block without axes runs its body once per outer point; a
block with axes loops over them (nested, the last one innermost). Reductions in a block are available to the
blocks after it, which is how softmax or layer norm is one Kernel: the row stays in registers or L1 between blocks.

    Kernel ::= name  params: Param*  outer: Axis*  blocks: Block*  vector_axis: axis name | None
    Block  ::= for axes: Axis*  do  body: Stmt*
    Stmt   ::= r = load param[Index] (where mask else other)?      element of a buffer
             | r = const c : dtype
             | r = index Index                                      the affine form itself, as i64
             | r = in_range Index low high                          low <= Index < high, as bool
             | r = op(args...) : dtype                              a row of `ir.scalar.SCALAR_OPS`
             | r = cast a : dtype
             | r = reduce kind a (at Index)? : dtype                over the block's axes
             | store param[Index] = a
    Index  ::= offset + sum(axis * coefficient)                     in elements of the buffer, or plain numbers

Scoping: a result defined in a block without axes is visible to every later statement of the Kernel. A result
defined in a block with axes is visible to later statements of that block only; the result of a `Reduce` becomes
visible after its block, and nowhere inside it. Statements may use the outer axes and their own block's axes.

Numbers: `float16` and `bfloat16` values can be loaded, stored and cast only; every scalar op works in float32,
float64, an integer dtype or bool. There is no implicit conversion, no contraction and no reassociation, except
that the order in which `Reduce` combines elements is unspecified.

The Python interpreter (`codegen.interpreter`) is the definition of what a Kernel means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from dsjit.ir.graph import Source

__all__ = [
    "Apply",
    "Axis",
    "Block",
    "Cast",
    "Constant",
    "InRange",
    "Index",
    "IndexValue",
    "Kernel",
    "Load",
    "Param",
    "Reduce",
    "ReduceKind",
    "Stmt",
    "Store",
]

ReduceKind: TypeAlias = Literal["sum", "prod", "max", "min", "any", "all", "argmax", "argmin"]


@dataclass(frozen=True, slots=True)
class Axis:
    """A loop axis that runs over 0 <= axis < size."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Index:
    """The affine form `offset + sum(axis * coefficient for axis, coefficient in terms)`; no coefficient is 0."""

    offset: int = 0
    terms: tuple[tuple[str, int], ...] = ()

    def coefficient(self, axis: str) -> int:
        for name, coefficient in self.terms:
            if name == axis:
                return coefficient
        return 0

    def __str__(self) -> str:
        parts = [name if coefficient == 1 else f"{coefficient}*{name}" for name, coefficient in self.terms]
        if self.offset or not parts:
            parts.append(str(self.offset))
        return " + ".join(parts)


@dataclass(frozen=True, slots=True)
class Param:
    """A buffer, passed by the address of its first element (the element at index 0; indices may be negative).

    access: "read", "write", or "readwrite" when one buffer is both (each element is then read, at the same
    index and in the same or an earlier iteration, before it is written).
    """

    name: str
    dtype: torch.dtype
    access: Literal["read", "write", "readwrite"]


@dataclass(frozen=True, slots=True)
class Load:
    """`result = param[index]`; where `mask` (a bool result) is false, memory is not touched and `other` results."""

    result: str
    param: str
    index: Index
    dtype: torch.dtype
    mask: str | None = None
    other: float | int | bool = 0


@dataclass(frozen=True, slots=True)
class Constant:
    """A number; `value` is exact in `dtype` or is rounded to it, to nearest even."""

    result: str
    value: float | int | bool
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class IndexValue:
    """The value of an affine form of the axes, as int64 (iota)."""

    result: str
    index: Index


@dataclass(frozen=True, slots=True)
class InRange:
    """`low <= index < high`, as bool: the mask of a padded, concatenated or tailed load."""

    result: str
    index: Index
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Apply:
    """`result = op(*args)`; `op` names a row of `ir.scalar.SCALAR_OPS`; `dtype` is the result's dtype."""

    result: str
    op: str
    args: tuple[str, ...]
    dtype: torch.dtype
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class Cast:
    """Conversion with C++ `static_cast` meaning: float to narrower float rounds to nearest even, float to integer
    truncates (out of range: as eager on this machine), anything to bool is `!= 0`, bool to number is 0 or 1."""

    result: str
    arg: str
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Reduce:
    """Combine `arg` over all points of the block's axes.

    sum, prod: in `dtype` (float32, float64 or int64); the float sums are accumulated in a way whose error does not
        grow linearly with the number of elements.
    max, min: a NaN anywhere makes the result NaN.
    any, all: of bool.
    argmax, argmin: the value of `index` (an affine form of the block's axes, increasing in iteration order) at the
        first extreme element, as int64; a NaN is more extreme than any number.
    """

    result: str
    kind: ReduceKind
    arg: str
    dtype: torch.dtype
    index: Index | None = None
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """`param[index] = arg`; `arg` has the param's dtype."""

    param: str
    index: Index
    arg: str


Stmt: TypeAlias = Load | Constant | IndexValue | InRange | Apply | Cast | Reduce | Store


@dataclass(frozen=True, slots=True)
class Block:
    """`for axes: body`; with no axes the body runs once per outer point."""

    axes: tuple[Axis, ...]
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One fused loop nest; see the module docstring for the grammar.

    vector_axis: the axis along which lanes run: the last axis of the blocks (then every block with axes ends in
        it), or the last of the outer axes (then each lane is an outer point of its own), or None when the Kernel
        has no axis at all. A choice of schedule: it does not change what the Kernel means.
    """

    name: str
    params: tuple[Param, ...]
    outer: tuple[Axis, ...]
    blocks: tuple[Block, ...]
    vector_axis: str | None = None
