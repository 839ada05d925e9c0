"""Ops that write to lists of tensors, tensor by tensor: Graphs have no values that are lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import torch

from dsjit.ir.graph import Arg, Source, TensorType, Value
from dsjit.trace.recording.memory import CannotTrace, Memory

__all__ = ["LIST_WRITES"]

aten = torch.ops.aten


class NodeRecorder(Protocol):
    """What is needed of the recorder."""

    memory: Memory

    def emit(self, op: Any, args: tuple[Arg, ...], kwargs: Mapping[str, Arg], type_: TensorType) -> Value: ...


def _unscale(recorder: NodeRecorder, args: Sequence[Any], source: Source) -> None:
    """`_amp_foreach_non_finite_check_and_unscale_`: each gradient times `scale`, and a 1 in `found` when one is
    infinite or NaN (aten/src/ATen/native/cpu/AmpGradScalerKernels.cpp, and cuda/AmpKernels.cu)."""
    gradients, found, scale = args
    memory, emit = recorder.memory, recorder.emit
    device = found.device
    if any(each.dtype not in (torch.float32, torch.float64) for each in gradients):
        raise CannotTrace("gradients of reduced precision are unscaled")
    if any(each.device != device for each in (*gradients, scale)):
        raise CannotTrace("gradients of several devices are unscaled at once")
    for each in (*gradients, found):
        memory.expect_write(each)
    flag, factor = memory.read(found), memory.read(scale)
    factor = emit(aten.view.default, (factor, ()), {}, _scalar(factor.type.dtype, device))
    for each in gradients:
        value, own = memory.read(each), _scalar(each.dtype, device)
        if each.numel():
            magnitudes = emit(aten.abs.default, (value,), {}, value.type)
            largest = emit(aten.amax.default, (magnitudes,), {}, own)
            finite = emit(aten.lt.Scalar, (largest, math.inf), {}, _scalar(torch.bool, device))
            one = emit(aten.ones_like.default, (flag,), {}, flag.type)
            flag = emit(aten.where.self, (finite, flag, one), {}, flag.type)
        operand = factor
        if each.dtype is not factor.type.dtype:
            operand = emit(aten._to_copy.default, (factor,), {"dtype": each.dtype}, own)
        memory.overwrite(each, emit(aten.mul.Tensor, (value, operand), {}, value.type), source)
    memory.overwrite(found, flag, source)


def _scalar(dtype: torch.dtype, device: torch.device) -> TensorType:
    return TensorType((), dtype, (), device)


LIST_WRITES: Final[Mapping[Any, Callable[[NodeRecorder, Sequence[Any], Source], None]]] = {
    aten._amp_foreach_non_finite_check_and_unscale_.default: _unscale,
}
"""How each is recorded, given its arguments, when it has run. Raises CannotTrace."""
