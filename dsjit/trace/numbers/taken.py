"""What Python gets when it takes a number out of a tensor: a traced one, where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from dsjit.trace.numbers.numbers import Numbers
from dsjit.trace.recording.escape import EscapeWatch

__all__ = ["take_converted", "take_item"]


class TakingRecorder(Protocol):
    """What is needed of the recorder."""

    numbers: Numbers
    escapes: EscapeWatch

    @property
    def pause(self) -> Callable[[], None]: ...

    @property
    def resume(self) -> Callable[[], None]: ...

    def note_failure(self, error: Exception) -> None: ...

    def look_at_int(self, tensor: torch.Tensor) -> None: ...


def take_item(recorder: TakingRecorder, tensor: torch.Tensor, item: Callable[[], float]) -> Any:
    """`tensor.item()`, which `item` does: what Python gets."""
    value = None
    recorder.pause()
    try:
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            value = recorder.numbers.value_to_hand_out(tensor)
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
                value = recorder.numbers.value_to_hand_out(tensor)
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
