"""Functions of extension modules that reach into tensors by themselves, and what torch's devices are asked for."""

from __future__ import annotations

import ctypes
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

import dsjit
from dsjit.trace.effects.forbidden import forbidden_code
from dsjit.trace.effects.native_code import foreign_native_module

FUNCTION = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.py_object)


class MethodDef(ctypes.Structure):
    """PyMethodDef, of CPython's C API."""

    _fields_ = (("name", ctypes.c_char_p), ("function", FUNCTION), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p))


KEPT: list[Any] = []
TAKES_ONE_ARGUMENT = 8


def native(call: Callable[[Any], None], module: str) -> Any:
    """A C function of that module."""
    definition = MethodDef(b"increment", FUNCTION(lambda _, argument: call(argument)), TAKES_ONE_ARGUMENT, None)
    KEPT.append(definition)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.py_object, ctypes.py_object]
    return make(ctypes.addressof(definition), None, module)


CELL = torch.zeros(4)
VALUES = (ctypes.c_float * 4).from_address(CELL.data_ptr())


def write(_: Any) -> None:
    """As machine code does it: no op, and nothing that Python could see."""
    for number in range(4):
        VALUES[number] += 1


def test_an_extension_that_was_loaded_by_hand_makes_a_call_eager() -> None:
    increment = native(write, "an_extension")

    def function(x: torch.Tensor) -> torch.Tensor:
        increment(CELL)
        return x + CELL

    jitted = dsjit.jit(function)
    x = torch.ones(4)
    with pytest.warns(dsjit.DsjitWarning, match="calls native code of an_extension"):
        assert torch.equal(jitted(x), torch.full((4,), 2.0))
    assert torch.equal(jitted(x), torch.full((4,), 3.0))


def test_what_is_not_linked_to_torch_cannot_reach_into_tensors(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("apart", b"libc.so.6"), ("linked", b"libc.so.6\0libtorch_python.so")):
        module = types.ModuleType(name)
        module.__file__ = str(tmp_path / f"{name}.so")
        (tmp_path / f"{name}.so").write_bytes(content)
        monkeypatch.setitem(sys.modules, name, module)
    assert foreign_native_module(native(write, "apart")) is None
    assert foreign_native_module(native(write, "linked")) == "linked"


@pytest.mark.parametrize("function", [torch.add, len, [].append, sys.getsizeof, torch.ones(1).add_, {}.get])
def test_functions_of_torch_and_of_python_are_known(function: Any) -> None:
    assert foreign_native_module(function) is None


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (torch.cuda.synchronize, "uses a stream or an event of a device"),
        (torch.cuda.current_stream, "uses a stream or an event of a device"),
        (torch.cuda.StreamContext.__enter__, "uses a stream or an event of a device"),
        (torch.cuda.Event.record, "uses a stream or an event of a device"),
        (torch.cuda.Event.elapsed_time, "uses a stream or an event of a device"),
        (torch.cuda.Stream.wait_stream, "uses a stream or an event of a device"),
        (torch.cuda.CUDAGraph.replay, "uses a stream or an event of a device"),
        (torch.cuda.memory_allocated, "asks about the memory of a device"),
        (torch.cuda.empty_cache, "asks about the memory of a device"),
        (torch.accelerator.synchronize, "uses a stream or an event of a device"),
        (torch.cuda.is_available, None),
    ],
)
def test_streams_events_and_memory_of_devices_are_nothing_to_replay(function: Any, reason: str | None) -> None:
    assert forbidden_code(function.__globals__["__name__"], function.__code__) == reason
