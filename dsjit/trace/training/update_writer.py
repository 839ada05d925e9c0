"""Writes nodes for what an optimizer did to tensors that exist."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from dsjit.ir.graph import TensorType, Value
from dsjit.trace.recording.recorder import Recorder

__all__ = ["Number", "UpdateWriter"]

aten = torch.ops.aten

Number: TypeAlias = float | Value
"""A float that is the same on each call, a float64 tensor of no dimension, or a row of such numbers."""


@dataclass(slots=True)
class UpdateWriter:
    """recorder: is told of the nodes, and of what is written."""

    recorder: Recorder

    def read(self, tensor: torch.Tensor) -> Value:
        return self.recorder.memory.read(tensor)

    def write(self, tensor: torch.Tensor, value: Value) -> None:
        memory = self.recorder.memory
        memory.expect_write(tensor)
        memory.overwrite(tensor, value, memory.sources.current())

    def call(self, op: Any, type_: TensorType, *args: Any, **kwargs: Any) -> Value:
        return self.recorder.emit(op, args, kwargs, type_)

    def negative(self, number: Number) -> Number:
        return self.call(aten.neg.default, number.type, number) if isinstance(number, Value) else -number

    def one_minus(self, number: Number) -> Number:
        return self.call(aten.rsub.Scalar, number.type, number, 1.0) if isinstance(number, Value) else 1 - number

    def times(self, number: Number, factor: float) -> Number:
        return self.call(aten.mul.Tensor, number.type, number, factor) if isinstance(number, Value) else number * factor

    def over(self, number: Number, divisor: Value) -> Value:
        if not isinstance(number, Value):
            number = self.recorder.constant(float(number))
        number = self.at(number, number.type.dtype, divisor.type.device)
        return self.call(aten.div.Tensor, divisor.type, number, divisor)

    def at(self, value: Value, dtype: torch.dtype, device: torch.device) -> Value:
        """The same numbers, in this dtype and on this device."""
        if (value.type.dtype, value.type.device) == (dtype, device):
            return value
        keywords: dict[str, Any] = {} if value.type.device == device else {"device": device}
        type_ = replace(value.type, dtype=dtype, device=device)
        return self.call(aten._to_copy.default, type_, value, dtype=dtype, **keywords)

    def picked(self, rows: Value, number: int) -> Value:
        """One row of several, or one number of a row."""
        type_ = replace(rows.type, shape=rows.type.shape[1:], strides=rows.type.strides[1:])
        return self.call(aten.select.int, type_, rows, 0, number)

    def operand(self, number: Number, like: TensorType) -> Number:
        """A number as it is computed with: in the dtype, and on the device, of a parameter."""
        return self.at(number, like.dtype, like.device) if isinstance(number, Value) else number
