"""`OpRow`: what dsjit knows of one ATen overload.

Four kinds of row, and no row at all:

- `Pointwise`: every output element is a scalar expression of the input elements (after broadcasting).
- `Reduction`: combines elements along dimensions.
- `View`: the output is the input's memory, seen with other sizes and strides.
- `Decomposition`: is written with other rows.
- an op without a row, or whose row's `when` refuses the call, runs as a library call inside the static Graph.

`ops.evaluation.evaluate` is the one place that applies a `Pointwise` row to operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch

from dsjit.ir.graph import Arg, Node, TensorType, Value
from dsjit.ir.kernel import ReduceKind

__all__ = [
    "Decomposition",
    "DtypeRule",
    "GraphBuilder",
    "OpRow",
    "OutputRule",
    "Pointwise",
    "Reduction",
    "Scalar",
    "ScalarBuilder",
    "View",
]

Scalar: TypeAlias = Any
"""A handle to a scalar inside a Kernel under construction (opaque to rows)."""

DtypeRule: TypeAlias = Literal["rounded", "result", "promoted", "as_is"]
"""In which dtype the tensor operands of a pointwise op are handed to its expression.

rounded: converted to the output dtype, and from there to its compute dtype.
result: as `rounded`, but a Python number, or a one-element tensor, that is not the first operand is converted to the
    compute dtype directly. ATen's `mul`, `div` and a few more read such an operand without rounding it
    to bf16 or fp16 (`original_scalar_value` in BinaryOpsKernel.cpp).
promoted: converted to the operands' promoted dtype, and from there to its compute dtype (comparisons: the output
    is bool).
as_is: each operand in the compute dtype of its own dtype (casts, bit tests).
"""

OutputRule: TypeAlias = Literal["promoted", "float", "bool", "first"] | Callable[[Mapping[str, Arg]], torch.dtype]
"""The dtype of the output.

promoted: what torch promotes the operands to (`torch.result_type`).
float: as promoted, but an integer or bool dtype becomes `torch.get_default_dtype()`.
bool: `torch.bool`.
first: the dtype of the first operand.
A function gets the bound schema arguments.
"""


class ScalarBuilder(Protocol):
    """What a row's expression may do. `dtype` arguments are kernel compute dtypes (never bf16 or fp16)."""

    def op(self, name: str, *args: Scalar) -> Scalar:
        """Apply a row of `ir.scalar.SCALAR_OPS`; the operands have equal dtypes."""
        ...

    def const(self, value: float | int | bool, like: Scalar) -> Scalar:
        """A constant in the dtype of `like`."""
        ...

    def constant(self, value: float | int | bool, dtype: torch.dtype) -> Scalar:
        """A constant in `dtype`."""
        ...

    def cast(self, a: Scalar, dtype: torch.dtype) -> Scalar:
        """`a` converted to `dtype` (bf16 and fp16 allowed: rounds, and must be cast back before use)."""
        ...

    def dtype_of(self, a: Scalar) -> torch.dtype: ...


@dataclass(frozen=True, slots=True)
class Pointwise:
    """`expression(b, *tensor_operands, **rest)`.

    tensors: names of the schema arguments that are elementwise operands. Each is handed over as a `Scalar` whether
        the call gave a tensor or a Python number (a number becomes a constant in the operand dtype); None stays None.
    rest: every other schema argument is handed over by keyword, as the Python value of the call.
    conditions: those of `tensors` that are handed over as bool, whatever `dtypes` says, and that take no part in
        type promotion.
    shape_only: names of tensor arguments of which only the shape counts (`full_like`): never handed over.
    stepwise: the output dtypes in which ATen rounds after every step of the expression, not only at its end.
    """

    expression: Callable[..., Scalar]
    tensors: tuple[str, ...]
    dtypes: DtypeRule = "rounded"
    output: OutputRule = "promoted"
    conditions: tuple[str, ...] = ()
    shape_only: tuple[str, ...] = ()
    stepwise: tuple[torch.dtype, ...] = ()


@dataclass(frozen=True, slots=True)
class Reduction:
    """Combines along `dims(node arguments)`.

    kind: how.
    dims: from the bound schema arguments and the rank, the reduced dimensions (non-negative, sorted).
    keepdim: from the bound schema arguments.
    compute: from input dtype and output dtype, the dtype in which to combine (elements are converted to it first).
    output: from the bound schema arguments and the input dtype, the dtype of the output.
    """

    kind: ReduceKind
    dims: Callable[[Mapping[str, Arg], int], tuple[int, ...]]
    keepdim: Callable[[Mapping[str, Arg]], bool]
    compute: Callable[[torch.dtype, torch.dtype], torch.dtype]
    output: Callable[[Mapping[str, Arg], torch.dtype], torch.dtype]


@dataclass(frozen=True, slots=True)
class View:
    """Every output element is an element of argument 0, by position; how indices map is in `fusion.views`, by op.

    types: from the bound schema arguments, the types of the outputs (several for `split` and `unbind`), strides exact.
    aliases: the outputs share the memory of argument 0. False for `flip`, which copies.
    """

    types: Callable[[Mapping[str, Arg]], tuple[TensorType, ...]]
    aliases: bool = True


class GraphBuilder(Protocol):
    """What a decomposition may do: call other ATen overloads on Values, with inferred types."""

    def call(self, op: Callable[..., Any], *args: Arg, **kwargs: Arg) -> Value:
        """Append `op` (which must have a Pointwise, Reduction or View row, or be a factory) and return its output."""
        ...

    def call_typed(
        self, op: Callable[..., Any], types: tuple[TensorType, ...], *args: Arg, **kwargs: Arg
    ) -> tuple[Value, ...]:
        """Append `op`, whose output types the caller states (for library ops that a decomposition leaves in place)."""
        ...


@dataclass(frozen=True, slots=True)
class Decomposition:
    """`rewrite(b, outputs, **bound schema arguments)` returns one Value (or None: unused and not computed) per output.

    Returns None instead of a tuple when this call is better left as a library call.
    `outputs` are the TensorTypes of the node: the rewritten Values must have the same shapes and dtypes.

    updates: positions of arguments that the op writes to (`Node.mutates`), whose new content the rewrite gives last.
    """

    rewrite: Callable[..., tuple[Value | None, ...] | None]
    updates: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OpRow:
    """One row of the op table.

    name: "aten.add.Tensor".
    rule: what kind it is, and how to lower it.
    when: from a Node of this overload, whether the rule covers this call; None when it covers every call.
    """

    name: str
    rule: Pointwise | Reduction | View | Decomposition
    when: Callable[[Node], bool] | None = None
