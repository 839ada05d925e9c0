"""A profile hook that is told of each code object once, and costs next to nothing afterwards.

`sys.setprofile` calls a Python function twice for each call of anything: 0.3 to 3 us each time on CPython 3.11, which
copies the frame's locals into a dictionary before. A trace makes tens of thousands of calls. The native hook
(`PyEval_SetProfile`) only calls Python for code objects and built-in functions that it has not met before.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import types
from collections.abc import Callable
from typing import Any, Final

from dsjit.once import once
from dsjit.trace.guards.native_code import compile_native

__all__ = ["ProfileHook"]

_API: Final = {
    "PyEval_SetProfile": "void (ptr, ptr)",
    "PyByteArray_AsString": "ptr (ptr)",
    "PyFrame_GetCode": "ptr (ptr)",
    "PyLong_FromVoidPtr": "ptr (ptr)",
    "PyObject_Vectorcall": "ptr (ptr, ptr, i64, ptr)",
    "PySet_Contains": "i32 (ptr, ptr)",
    "PyTuple_GetItem": "ptr (ptr, i64)",
    "Py_DecRef": "void (ptr)",
}

_METHOD_OFFSET: Final = 16
"""Bytes from the start of a `PyCFunctionObject` to `m_ml`, its definition (Include/cpython/methodobject.h)."""

_PAUSED: Final = 2

_HOOK: Final = """
define i32 @hook(ptr %self, ptr %frame, i32 %what, ptr %argument) {
entry:
  %arguments = alloca [2 x ptr]
  switch i32 %what, label %done [
    i32 0, label %begin
    i32 4, label %begin
  ]
begin:
  %muted_object = call ptr @PyTuple_GetItem(ptr %self, i64 0)
  %muted_at = call ptr @PyByteArray_AsString(ptr %muted_object)
  %muted = load i8, ptr %muted_at
  %heard = icmp eq i8 %muted, 0
  br i1 %heard, label %choose, label %done
choose:
  %is_call = icmp eq i32 %what, 0
  br i1 %is_call, label %python, label %builtin
python:
  %code = call ptr @PyFrame_GetCode(ptr %frame)
  call void @Py_DecRef(ptr %code)
  br label %look
builtin:
  %method_at = getelementptr i8, ptr %argument, i64 METHOD_OFFSET
  %method = load ptr, ptr %method_at
  br label %look
look:
  %identity = phi ptr [ %code, %python ], [ %method, %builtin ]
  %number = phi i64 [ 1, %python ], [ 2, %builtin ]
  %known = call ptr @PyTuple_GetItem(ptr %self, i64 %number)
  %key = call ptr @PyLong_FromVoidPtr(ptr %identity)
  %found = call i32 @PySet_Contains(ptr %known, ptr %key)
  call void @Py_DecRef(ptr %key)
  %new = icmp eq i32 %found, 0
  br i1 %new, label %tell, label %done
tell:
  %callback = call ptr @PyTuple_GetItem(ptr %self, i64 3)
  store ptr %frame, ptr %arguments
  %second = getelementptr ptr, ptr %arguments, i64 1
  store ptr %argument, ptr %second
  %result = call ptr @PyObject_Vectorcall(ptr %callback, ptr %arguments, i64 2, ptr null)
  %failed = icmp eq ptr %result, null
  br i1 %failed, label %error, label %drop
drop:
  call void @Py_DecRef(ptr %result)
  br label %done
done:
  ret i32 0
error:
  call void @PyEval_SetProfile(ptr null, ptr null)
  ret i32 -1
}
"""


class ProfileHook:
    """Tells of what runs on this thread between `start()` and `stop()`.

    An Exception in a callback is not the user's: `on_error` gets it. Any other (KeyboardInterrupt) ends the hook, and
    is raised in the frame that the callback was called for, as `sys.setprofile` has it.

    on_code: called with the frame when a code object begins; until it returns True, each time.
    on_builtin: called with a built-in function and the frame that calls it; until it returns True, each time.
    muted: while its only byte is not 0, nothing is told. `pauses` sets one bit of it, and leaves the others alone.
    """

    def __init__(
        self,
        on_code: Callable[[types.FrameType], bool],
        on_builtin: Callable[[Any, types.FrameType], bool],
        on_error: Callable[[Exception], None],
        native: bool = True,
    ) -> None:
        self._on_error = on_error
        self._on_code = on_code
        self._on_builtin = on_builtin
        self._set_profile = _native_hook() if native else None
        self._codes: set[int] = set()
        self._builtins: set[int] = set()
        self._pinned: list[types.CodeType] = []
        self.muted = bytearray(1)

    def start(self) -> None:
        if self._set_profile is None:
            sys.setprofile(self._on_event)
        else:
            self._set_profile((self.muted, self._codes, self._builtins, self._tell))

    def tell_again(self) -> None:
        """Tell of code objects and built-in functions that were of no interest so far."""
        self._codes.clear()
        self._builtins.clear()

    def stop(self) -> None:
        sys.setprofile(None)

    def pauses(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Functions to call before and after code that is not the user's, of which nothing is told.

        The hook stays where its going would not pay: from CPython 3.12 on, one that comes or goes changes all code.
        """
        install = self._set_profile
        if install is None or sys.version_info >= (3, 12):
            return self._mute, self._unmute
        state = (self.muted, self._codes, self._builtins, self._tell)
        return functools.partial(sys.setprofile, None), functools.partial(install, state)

    def _mute(self) -> None:
        self.muted[0] |= _PAUSED

    def _unmute(self) -> None:
        self.muted[0] &= ~_PAUSED

    def _tell(self, frame: types.FrameType, argument: Any) -> None:
        """argument: the built-in function that `frame` calls; None when the frame itself begins."""
        try:
            if argument is not None:
                if self._on_builtin(argument, frame):
                    self._builtins.add(_method_address(argument))
            elif self._on_code(frame):
                code = frame.f_code
                self._pinned.append(code)
                self._codes.add(id(code))
        except Exception as error:
            self._on_error(error)

    def _on_event(self, frame: types.FrameType, event: str, argument: Any) -> None:
        """The same in Python, for interpreters without the native hook."""
        if self.muted[0]:
            return
        if event == "call":
            if id(frame.f_code) not in self._codes:
                self._tell(frame, None)
        elif event == "c_call":
            self._tell(frame, argument)


def _method_address(function: Any) -> int:
    return ctypes.c_size_t.from_address(id(function) + _METHOD_OFFSET).value


@once
def _native_hook() -> Callable[[tuple[Any, ...]], None] | None:
    """Installs the native hook with its state, or None where built-in functions are not laid out as is thought."""
    if _method_address(len) == _method_address(max) or _method_address([].append) != _method_address([1].append):
        return None
    engine = compile_native(_HOOK.replace("METHOD_OFFSET", str(_METHOD_OFFSET)), _API)
    address = engine.get_function_address("hook")
    set_profile = ctypes.pythonapi.PyEval_SetProfile
    set_profile.argtypes = [ctypes.c_void_p, ctypes.py_object]
    set_profile.restype = None

    def install(state: tuple[Any, ...], _engine: Any = engine) -> None:
        set_profile(address, state)

    return install
