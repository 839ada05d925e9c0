"""Applies a `Pointwise` row to the operands of a Node: where dtype rules turn into casts and constants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch

from dsjit.ir.dtypes import FLOAT8, compute_dtype
from dsjit.ir.graph import Arg, Node, Value
from dsjit.ops.binding import bind
from dsjit.ops.inference import number_dtype, promoted_dtype
from dsjit.ops.row import Pointwise, Scalar, ScalarBuilder

__all__ = ["evaluate"]

Number: TypeAlias = float | int | bool

REDUCED: Final = (torch.bfloat16, torch.float16)

_NARROW: Final = frozenset(REDUCED) | FLOAT8

EXACT_OPS: Final = frozenset(
    {"neg", "abs", "maximum", "minimum", "fmax", "fmin", "copysign", "floor", "ceil", "trunc", "round", "trunc_rem",
     "select", "eq", "ne", "lt", "le", "gt", "ge", "signbit", "and", "or", "xor", "not"}
)  # fmt: skip
"""Scalar ops whose result, given operands that fit a dtype, fits it too: rounding would change nothing."""


def evaluate(rule: Pointwise, node: Node, b: ScalarBuilder, load: Callable[[Value], Scalar]) -> Scalar:
    """Append to `b` the scalar that `node` computes from one element of each operand; returns it in the dtype of
    the node's output (which may be bf16 or fp16: rounded, ready to store).

    rule: the row of `node.op`.
    load: gives the element of an operand, in the operand's own dtype or in its compute dtype. Called once for
        each distinct operand in `rule.tensors`, never for those in `rule.shape_only`.
    """
    bound = bind(node)
    for name in rule.shape_only:
        del bound[name]
    operands = [bound.pop(name) for name in rule.tensors]
    output = node.output.type.dtype
    loaded: dict[Value, Scalar] = {}
    scalars: list[Scalar] = []
    targets = _operand_dtypes(rule, operands, output)
    for operand, target in zip(operands, targets, strict=True):
        if operand is None:
            scalars.append(None)
        elif isinstance(operand, Value):
            scalar = loaded.get(operand)
            if scalar is None:
                scalar = loaded[operand] = load(operand)
            if target is not operand.type.dtype:
                scalar = convert(b, scalar, target)
            scalars.append(convert(b, scalar, compute_dtype(target)))
        else:
            scalars.append(b.constant(fitted(operand, target), compute_dtype(target)))
    steps = _RoundingBuilder(b, output) if output in rule.stepwise else b
    return convert(b, rule.expression(steps, *scalars, **bound), output)


def _operand_dtypes(rule: Pointwise, operands: list[Arg], output: torch.dtype) -> list[torch.dtype]:
    """The dtype to which each operand is converted, before its compute dtype."""
    if rule.dtypes == "as_is":
        targets = [_own_dtype(operand) for operand in operands]
    elif rule.dtypes == "promoted":
        targets = [promoted_dtype(operands)] * len(operands)
    else:
        targets = [output] * len(operands)
        if rule.dtypes == "result" and output in REDUCED:
            targets[1:] = [torch.float32 if _is_single(operand) else output for operand in operands[1:]]
    for condition in rule.conditions:
        targets[rule.tensors.index(condition)] = torch.bool
    return targets


def _is_single(operand: Arg) -> bool:
    return not isinstance(operand, Value) or operand.type.numel == 1


@dataclass(frozen=True, slots=True)
class _RoundingBuilder:
    """Rounds every result and constant to `storage` (bf16 or fp16), as `Vectorized<BFloat16>` arithmetic does."""

    inner: ScalarBuilder
    storage: torch.dtype

    def op(self, name: str, *args: Scalar) -> Scalar:
        result = self.inner.op(name, *args)
        return result if name in EXACT_OPS else self._rounded(result)

    def const(self, value: Number, like: Scalar) -> Scalar:
        return self.constant(value, self.inner.dtype_of(like))

    def constant(self, value: Number, dtype: torch.dtype) -> Scalar:
        return self.inner.constant(fitted(value, self.storage) if dtype is torch.float32 else value, dtype)

    def cast(self, a: Scalar, dtype: torch.dtype) -> Scalar:
        return self.inner.cast(a, dtype)

    def dtype_of(self, a: Scalar) -> torch.dtype:
        return self.inner.dtype_of(a)

    def _rounded(self, a: Scalar) -> Scalar:
        return self.inner.cast(self.inner.cast(a, self.storage), torch.float32)


def convert(b: ScalarBuilder, a: Scalar, dtype: torch.dtype) -> Scalar:
    """`a` in `dtype`. What is not fp32 reaches what is narrower through fp32, as in ATen (`c10::BFloat16(float)`)."""
    current = b.dtype_of(a)
    if current is dtype:
        return a
    if dtype in _NARROW or current in _NARROW:
        if current is not torch.float32:
            a = b.cast(a, torch.float32)
        if dtype is torch.float32:
            return a
    return b.cast(a, dtype)


def _own_dtype(operand: Arg) -> torch.dtype:
    return operand.type.dtype if isinstance(operand, Value) else number_dtype(operand)


def fitted(number: Number, dtype: torch.dtype) -> Number:
    """`number` as an element of `dtype` would hold it: integers wrap around, bf16 and fp16 round through fp32."""
    if dtype is torch.bool:
        return bool(number)
    if dtype.is_floating_point:
        value = float(number)
        return _rounded(value, dtype) if dtype in REDUCED else value
    limits = torch.iinfo(dtype)
    return (int(number) - limits.min) % (1 << limits.bits) + limits.min


def _rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=torch.float32).to(dtype).item()
