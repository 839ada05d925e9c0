"""Ops that arrange or combine tensors without arithmetic of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from dsjit.ir.graph import TensorType, Value, contiguous_strides
from dsjit.ops.decompositions.precision import Outputs, Rewritten, cast, rewrites, widen
from dsjit.ops.row import GraphBuilder, OpRow

__all__ = ["ROWS"]

aten = torch.ops.aten


def stack(b: GraphBuilder, outputs: Outputs, *, tensors: tuple[Value, ...], dim: int) -> Rewritten:
    shape = outputs[0].shape
    dim = dim + len(shape) if dim < 0 else dim
    parts = tuple(b.call(aten.unsqueeze.default, tensor, dim) for tensor in tensors)
    type_ = TensorType(shape, outputs[0].dtype, contiguous_strides(shape), outputs[0].device)
    return b.call_typed(aten.cat.default, (type_,), parts, dim)


def glu(b: GraphBuilder, outputs: Outputs, *, self: Value, dim: int) -> Rewritten:
    """The first half along `dim`, gated by the sigmoid of the second (Dauphin et al., 2017)."""
    size = self.type.shape[dim]
    value = widen(b, b.call(aten.slice.Tensor, self, dim, 0, size // 2))
    gate = widen(b, b.call(aten.slice.Tensor, self, dim, size // 2, size))
    result = b.call(aten.mul.Tensor, value, b.call(aten.sigmoid.default, gate))
    return (cast(b, result, outputs[0].dtype),)


def dropout(b: GraphBuilder, outputs: Outputs, *, input: Value, p: float, train: bool) -> Rewritten:
    """Evaluation only: the input itself."""
    return None if train and p != 0 else (input,)


ROWS: Final[Mapping[str, OpRow]] = rewrites({"stack.default": stack, "glu.default": glu, "dropout.default": dropout})
