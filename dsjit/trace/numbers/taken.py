"""What Python gets when it takes a number out of a tensor: a traced one, where that is possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from dsjit.ir.graph import Arg, TensorType, Value
from dsjit.trace.numbers.numbers import Numbers
from dsjit.trace.numbers.tables import SCALAR, WHOLE, WHOLE_DTYPES
from dsjit.trace.recording.escape import EscapeWatch

__all__ = ["take_converted", "take_item", "value_to_hand_out"]

aten = torch.ops.aten


class TakingRecorder(Protocol):
    """What is needed of the recorder."""

    numbers: Numbers
    escapes: EscapeWatch

    @property
    def pause(self) -> Callable[[], None]: ...

    @property
    def resume(self) -> Callable[[], None]: ...

    def emit(self, op: Any, args: tuple[Arg, ...], kwargs: Mapping[str, Arg], type_: TensorType) -> Value: ...

    def value_of(self, tensor: torch.Tensor) -> Value: ...

    def note_failure(self, error: Exception) -> None: ...

    def look_at_int(self, tensor: torch.Tensor) -> None: ...


def value_to_hand_out(recorder: TakingRecorder, tensor: torch.Tensor) -> Value | None:
    """The Value of `tensor.item()`; None when a plain number must be handed out, and looked at as one.

    Raises CannotTrace when the tensor cannot be part of a Graph.
    """
    whole = tensor.dtype in WHOLE_DTYPES
    if not (whole or tensor.is_floating_point()) or tensor.numel() != 1 or tensor.device.type != "cpu":
        return None
    if not recorder.numbers.may_trace(whole):
        return None
    value = recorder.value_of(tensor)
    if value.type.shape:
        own_type = TensorType((), tensor.dtype, (), tensor.device)
        value = recorder.emit(aten.view.default, (value, ()), {}, own_type)
    type_ = WHOLE if whole else SCALAR
    if tensor.dtype is type_.dtype:
        return recorder.emit(aten.clone.default, (value,), {}, type_)
    return recorder.emit(aten._to_copy.default, (value,), {"dtype": type_.dtype}, type_)


def take_item(recorder: TakingRecorder, tensor: torch.Tensor, item: Callable[[], float]) -> Any:
    """`tensor.item()`, which `item` does: what Python gets."""
    value = None
    recorder.pause()
    try:
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            value = value_to_hand_out(recorder, tensor)
    except Exception as error:
        recorder.note_failure(error)
    finally:
        recorder.resume()
    if value is None:
        return item()
    recorder.escapes.looking = True
    try:
        number = item()
        try:
            return recorder.numbers.hand_out(number, value, largest(tensor.dtype))
        except Exception as error:
            recorder.note_failure(error)
            return number
    finally:
        recorder.escapes.looking = False


def take_converted(
    recorder: TakingRecorder, tensor: torch.Tensor, kind: type[float], convert: Callable[[], Any]
) -> Any:
    """`kind(tensor)`, which `convert` does: what Python gets."""
    value = None
    recorder.pause()
    try:
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            if recorder.numbers.conversions.begin(kind):
                value = value_to_hand_out(recorder, tensor)
    except Exception as error:
        recorder.note_failure(error)
    finally:
        recorder.resume()
    if value is None:
        if kind is int:
            recorder.look_at_int(tensor)
        recorder.escapes.looking = kind is int
        try:
            return convert()
        finally:
            recorder.escapes.looking = False
    recorder.escapes.looking = True
    try:
        number = convert()
        try:
            value = recorder.numbers.convert(value, kind)
            return recorder.numbers.hand_out_converted(number, value, largest(tensor.dtype))
        except Exception as error:
            recorder.note_failure(error)
            return number
    finally:
        recorder.escapes.looking = False


def largest(dtype: torch.dtype) -> float:
    """What the magnitude of a finite number of this dtype cannot exceed."""
    return torch.finfo(dtype).max if dtype.is_floating_point else -float(torch.iinfo(dtype).min or -255)
