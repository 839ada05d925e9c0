"""Kernel: the loop-level IR.

A Kernel is one fused loop nest. `outer` axes are parallel: each point of their product is independent of every
other. At each outer point the `blocks` run in order. A block without axes runs its body once per outer point; a
block with axes loops over them (nested, the last one innermost). Reductions in a block are available to the
blocks after it, which is how softmax or layer norm is one Kernel: the row stays in registers or L1 between blocks.

    Kernel ::= name  params: Param*  outer: Axis*  blocks: Block*  vector_axis: axis name | None  sizes: SizeParam*
    Block  ::= for axes: Axis*  do  body: Stmt*
    Stmt   ::= r = load param[Place] (where mask else other)?      element of a buffer
             | r = const c : dtype
             | r = index Index                                      the affine form itself, as i64
             | r = in_range Index low high                          low <= Index < high, as bool
             | r = op(args...) : dtype                              a row of `ir.scalar.SCALAR_OPS`
             | r = cast a : dtype
             | r = reduce kind a (at Index)? (over axis*)? : dtype  over the block's axes, or over some of them
             | store param[Index] = a
             | check a                                              where the bool a is false, the run is refused
    Place  ::= Index (+ r * coefficient)*                          r: i64 results, which data decide
    Index  ::= offset + sum(axis * coefficient)                     in elements of the buffer, or plain numbers
    Size   ::= int | SizeParam                                      extents, offsets, coefficients, bounds

Scoping: a result defined in a block without axes is visible to every later statement of the Kernel. A result
defined in a block with axes is visible to later statements of that block only; the result of a `Reduce` becomes
visible after its block, and nowhere inside it; where it combines only some of the axes, to the statements of later
blocks that loop over the others. Statements may use the outer axes and their own block's axes.

Checks: a Kernel in which a check fails anywhere still runs to its end, touches nothing outside of its buffers, and
leaves them with contents that mean nothing; whoever runs it raises IndexError then, before anybody sees these.

Sizes: a Kernel for many shapes takes some of its integers as parameters. `bind_sizes` gives the Kernel for one shape,
which is what the other one means there.

Numbers: `float16`, `bfloat16` and float8 values can be loaded, stored and cast only; every scalar op works in float32,
float64, an integer dtype or bool. There is no implicit conversion, no contraction and no reassociation, except that the
order in which `Reduce` combines elements is unspecified.

The Python interpreter (`codegen.interpreter`) is the definition of what a Kernel means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch

from dsjit.ir.graph import Source

__all__ = [
    "Apply",
    "Axis",
    "Block",
    "Cast",
    "Check",
    "Constant",
    "Gathered",
    "InRange",
    "Index",
    "IndexValue",
    "Kernel",
    "Load",
    "MatrixPrecision",
    "Param",
    "Reduce",
    "ReduceKind",
    "Size",
    "SizeParam",
    "Stmt",
    "Store",
    "bind_sizes",
    "has_checks",
    "known",
    "names_read",
    "typical",
]

ReduceKind: TypeAlias = Literal["sum", "prod", "max", "min", "any", "all", "argmax", "argmin"]

MatrixPrecision: TypeAlias = Literal["exact", "tf32"]
"""How a matrix unit may compute: with operands as they are, or rounded to 10 bits after the leading one."""


@dataclass(frozen=True, slots=True)
class SizeParam:
    """An integer that is known when the Kernel runs, passed as int64. As a coefficient or an extent it may be anything
    from 0 on.

    typical: what to expect, for decisions that only affect speed.
    """

    name: str
    typical: int = field(compare=False)

    def __str__(self) -> str:
        return self.name


Size: TypeAlias = int | SizeParam


def typical(size: Size) -> int:
    """The size, or what to expect of it."""
    return size.typical if isinstance(size, SizeParam) else size


def known(size: Size) -> int:
    """The size, which is no parameter; raises TypeError when it is."""
    if isinstance(size, SizeParam):
        raise TypeError(f"the size {size} is a parameter: bind it first")
    return size


@dataclass(frozen=True, slots=True)
class Axis:
    """A loop axis that runs over 0 <= axis < size."""

    name: str
    size: Size


@dataclass(frozen=True, slots=True)
class Index:
    """The affine form `offset + sum(axis * coefficient for axis, coefficient in terms)`; no coefficient is 0."""

    offset: Size = 0
    terms: tuple[tuple[str, Size], ...] = ()

    def coefficient(self, axis: str) -> Size:
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


Gathered: TypeAlias = tuple[tuple[str, Size], ...]
"""Results that hold places, and the number of elements from one place to the next."""


@dataclass(frozen=True, slots=True)
class Load:
    """`result = param[index]`; where `mask` (a bool result) is false, memory is not touched and `other` results.

    gathered: i64 results, each with a coefficient that is not 0, whose products are added to the index. A place that
        data decide must lie in the buffer, whatever they are: a `Check` keeps the answer, and does not guard a load.
    """

    result: str
    param: str
    index: Index
    dtype: torch.dtype
    mask: str | None = None
    other: float | int | bool = 0
    gathered: Gathered = ()


@dataclass(frozen=True, slots=True)
class Constant:
    """A number; `value` is exact in `dtype` or is rounded to it, to nearest even."""

    result: str
    value: float | int | bool | SizeParam
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
    low: Size
    high: Size


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
    argmax, argmin: the least value of `index` (an affine form of the block's axes, in whatever order these are looped
        over) at an extreme element, as int64; a NaN is more extreme than any number.
    matrix: of a sum whose operand is a product of two floats, in float32: it is an element of a matrix product, and may
        be added up as libraries of such products do, with fused multiply-adds, in any order.
    over: the axes of the block that are combined, where these are not all: the result then has an element for each
        point of the others. Over none, it is the operand, kept for later blocks. Of sums alone, as attention has them.
    """

    result: str
    kind: ReduceKind
    arg: str
    dtype: torch.dtype
    index: Index | None = None
    source: Source | None = None
    matrix: MatrixPrecision | None = None
    over: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """`param[index] = arg`; `arg` has the param's dtype."""

    param: str
    index: Index
    arg: str


@dataclass(frozen=True, slots=True)
class Check:
    """The run is refused, with an IndexError, when the bool `condition` is false at some point."""

    condition: str
    source: Source | None = None


Stmt: TypeAlias = Load | Constant | IndexValue | InRange | Apply | Cast | Reduce | Store | Check


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
    sizes: the integers that it takes as parameters, after its buffers.
    """

    name: str
    params: tuple[Param, ...]
    outer: tuple[Axis, ...]
    blocks: tuple[Block, ...]
    vector_axis: str | None = None
    sizes: tuple[SizeParam, ...] = ()


def bind_sizes(kernel: Kernel, values: Mapping[str, int]) -> Kernel:
    """The Kernel in which each SizeParam is the integer that `values` has under its name."""

    def size(value: Size) -> int:
        return values[value.name] if isinstance(value, SizeParam) else value

    def index(form: Index) -> Index:
        terms = [(axis, size(coefficient)) for axis, coefficient in form.terms]
        return Index(size(form.offset), tuple([term for term in terms if term[1]]))

    def axes(old: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple([Axis(axis.name, size(axis.size)) for axis in old])

    def statement(stmt: Stmt) -> Stmt:
        match stmt:
            case Load():
                gathered = [(name, size(coefficient)) for name, coefficient in stmt.gathered]
                known_terms = tuple([term for term in gathered if term[1]])
                return replace(stmt, index=index(stmt.index), gathered=known_terms)
            case Store() | IndexValue():
                return replace(stmt, index=index(stmt.index))
            case InRange():
                return replace(stmt, index=index(stmt.index), low=size(stmt.low), high=size(stmt.high))
            case Reduce():
                return stmt if stmt.index is None else replace(stmt, index=index(stmt.index))
            case Constant():
                return replace(stmt, value=size(stmt.value)) if isinstance(stmt.value, SizeParam) else stmt
            case _:
                return stmt

    blocks = tuple([Block(axes(block.axes), tuple(map(statement, block.body))) for block in kernel.blocks])
    return replace(kernel, outer=axes(kernel.outer), blocks=blocks, sizes=())


def has_checks(kernel: Kernel) -> bool:
    """Whether the run may be refused."""
    return any(isinstance(statement, Check) for block in kernel.blocks for statement in block.body)


def names_read(statement: Stmt) -> tuple[str, ...]:
    """The results of other statements that this one takes."""
    match statement:
        case Apply():
            return statement.args
        case Cast() | Reduce() | Store():
            return (statement.arg,)
        case Load():
            gathered = tuple([name for name, _ in statement.gathered])
            return gathered if statement.mask is None else (*gathered, statement.mask)
        case Check():
            return (statement.condition,)
        case _:
            return ()
