"""The value stack of a frame that is running a call, where the iterators of its `for` loops lie.

No function of Python's gives access to it. In memory it follows the frame's variables, in the order of
`co_varnames`, `co_cellvars` and `co_freevars` (`_PyInterpreterFrame.localsplus`, Include/internal/pycore_frame.h);
where that begins is found out by looking for known objects in a frame of this module's own.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import types
from typing import Any, Final

__all__ = ["can_reach_stacks", "put_on_stack", "stack_entry"]

_FRAME_OFFSET: Final = 24
"""Bytes from the start of a frame object to its pointer to the `_PyInterpreterFrame`."""

_MOST_BYTES: Final = 128
"""Before the variables, at most."""

_WORD: Final = ctypes.sizeof(ctypes.c_void_p)


def can_reach_stacks() -> bool:
    """Whether frames of this interpreter are laid out as is thought."""
    return _offset() is not None


def stack_entry(frame: types.FrameType, number: int) -> Any:
    """The object that lies at this height on the stack of `frame`, or None where that is empty. It must be in use."""
    slot = _slot(frame, number)
    return ctypes.cast(slot, ctypes.py_object).value if slot.value else None


def put_on_stack(frame: types.FrameType, number: int, entry: object) -> None:
    """Put `entry` in the place of the object that lies there."""
    slot = _slot(frame, number)
    former = ctypes.cast(slot, ctypes.py_object)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(entry))
    slot.value = id(entry)
    ctypes.pythonapi.Py_DecRef(former)


def _slot(frame: types.FrameType, number: int) -> ctypes.c_void_p:
    offset = _offset()
    assert offset is not None
    return _word(_interpreter_frame(frame) + offset + _WORD * (_variable_count(frame.f_code) + number))


def _interpreter_frame(frame: types.FrameType) -> int:
    return _word(id(frame) + _FRAME_OFFSET).value or 0


def _word(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p.from_address(address)


def _variable_count(code: types.CodeType) -> int:
    cells = [name for name in code.co_cellvars if name not in code.co_varnames]
    return len(code.co_varnames) + len(cells) + len(code.co_freevars)


@functools.cache
def _offset() -> int | None:
    """Bytes from the start of a `_PyInterpreterFrame` to its variables; None when they are not found."""
    if sys.implementation.name != "cpython":
        return None
    return _found_offset(object(), iter(range(2)))


def _found_offset(variable: object, iterator: Any) -> int | None:
    for _ in iterator:
        frame = sys._getframe()
        start, distance = _interpreter_frame(frame), _WORD * _variable_count(frame.f_code)
        del frame  # which would hold itself, and all frames around it
        for offset in range(0, _MOST_BYTES, _WORD):
            if _word(start + offset).value == id(variable) and _word(start + offset + distance).value == id(iterator):
                return offset
        break
    return None
