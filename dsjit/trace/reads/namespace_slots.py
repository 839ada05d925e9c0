"""Observing `types.SimpleNamespace`, a class that no Python code can change: native functions in its slots.

CPython calls the slots of a type for every access to its instances, whoever makes it. While they are taken, each tells
first what is about to happen, and then does what the class does. Code that reads an instance as a whole (its text, a
comparison, a copy) is told apart from code that reads one attribute.
"""

from __future__ import annotations

import ctypes
import functools
import types
from collections.abc import Callable
from typing import Any, Final

from dsjit.trace.guards.native_code import compile_native
from dsjit.trace.reads.paths import ABSENT

__all__ = ["NamespaceSlots", "namespace_slots"]

_POINTER: Final = ctypes.sizeof(ctypes.c_void_p)
_REPR, _GETATTRO, _SETATTRO, _RICHCOMPARE = (_POINTER * number for number in (11, 18, 19, 25))
"""Bytes from the start of a `PyTypeObject` (Include/cpython/object.h) to the slots; the same since CPython 3.8."""

_API: Final = {
    "PyObject_GenericGetAttr": "ptr (ptr, ptr)",
    "PyObject_GenericSetAttr": "i32 (ptr, ptr, ptr)",
    "PyObject_Vectorcall": "ptr (ptr, ptr, i64, ptr)",
    "Py_DecRef": "void (ptr)",
}

_SLOTS: Final = """
define private i1 @tell(ptr %listener, ptr %self, ptr %name, ptr %value) {
entry:
  %arguments = alloca [3 x ptr]
  store ptr %self, ptr %arguments
  %second = getelementptr ptr, ptr %arguments, i64 1
  store ptr %name, ptr %second
  %third = getelementptr ptr, ptr %arguments, i64 2
  store ptr %value, ptr %third
  %result = call ptr @PyObject_Vectorcall(ptr %listener, ptr %arguments, i64 3, ptr null)
  %failed = icmp eq ptr %result, null
  br i1 %failed, label %error, label %drop
drop:
  call void @Py_DecRef(ptr %result)
  ret i1 true
error:
  ret i1 false
}

define ptr @getattro(ptr %self, ptr %name) {
entry:
  %told = call i1 @tell(ptr inttoptr (i64 ON_READ to ptr), ptr %self, ptr %name, ptr inttoptr (i64 NONE to ptr))
  br i1 %told, label %read, label %error
read:
  %value = call ptr @PyObject_GenericGetAttr(ptr %self, ptr %name)
  ret ptr %value
error:
  ret ptr null
}

define i32 @setattro(ptr %self, ptr %name, ptr %value) {
entry:
  %deletes = icmp eq ptr %value, null
  %shown = select i1 %deletes, ptr inttoptr (i64 ABSENT to ptr), ptr %value
  %told = call i1 @tell(ptr inttoptr (i64 ON_WRITE to ptr), ptr %self, ptr %name, ptr %shown)
  br i1 %told, label %write, label %error
write:
  %code = call i32 @PyObject_GenericSetAttr(ptr %self, ptr %name, ptr %value)
  ret i32 %code
error:
  ret i32 -1
}

define ptr @repr(ptr %self) {
entry:
  %none = inttoptr i64 NONE to ptr
  %told = call i1 @tell(ptr inttoptr (i64 ON_READ to ptr), ptr %self, ptr %none, ptr %none)
  br i1 %told, label %show, label %error
show:
  %text = call ptr inttoptr (i64 OWN_REPR to ptr)(ptr %self)
  ret ptr %text
error:
  ret ptr null
}

define ptr @richcompare(ptr %self, ptr %other, i32 %operator) {
entry:
  %none = inttoptr i64 NONE to ptr
  %told = call i1 @tell(ptr inttoptr (i64 ON_READ to ptr), ptr %self, ptr %none, ptr %other)
  br i1 %told, label %compare, label %error
compare:
  %answer = call ptr inttoptr (i64 OWN_RICHCOMPARE to ptr)(ptr %self, ptr %other, i32 %operator)
  ret ptr %answer
error:
  ret ptr null
}
"""


class NamespaceSlots:
    """The slots of `types.SimpleNamespace`.

    on_read: called with an instance and the name of an attribute before that is looked up, and None; or with None for
    the name before an instance is read as a whole, and the object that it is compared with. on_write: called with an
    instance, a name and a value (ABSENT: it is deleted). What they raise is raised by the access. They live as long as
    this object, which must not be freed while the slots are taken.
    """

    def __init__(
        self, on_read: Callable[[Any, str | None, Any], None], on_write: Callable[[Any, str, Any], None]
    ) -> None:
        self._listeners = (on_read, on_write)
        own = {offset: _slot(offset).value or 0 for offset in (_REPR, _GETATTRO, _SETATTRO, _RICHCOMPARE)}
        self._own = own
        addresses = {
            "ON_READ": id(on_read),
            "ON_WRITE": id(on_write),
            "NONE": id(None),
            "ABSENT": id(ABSENT),
            "OWN_REPR": own[_REPR],
            "OWN_RICHCOMPARE": own[_RICHCOMPARE],
        }
        source = _SLOTS
        for name, address in addresses.items():
            source = source.replace(f"i64 {name} ", f"i64 {address} ")
        self._engine = compile_native(source, _API)
        functions = {_REPR: "repr", _GETATTRO: "getattro", _SETATTRO: "setattro", _RICHCOMPARE: "richcompare"}
        self._taken = {offset: self._engine.get_function_address(name) for offset, name in functions.items()}

    def take(self) -> None:
        """From now on the listeners are told, on all threads."""
        _fill(self._taken)

    def give_back(self) -> None:
        """The class is what it was."""
        _fill(self._own)


def namespace_slots(
    on_read: Callable[[Any, str | None, Any], None], on_write: Callable[[Any, str, Any], None]
) -> NamespaceSlots | None:
    """The slots, or None where types are not laid out as is thought."""
    return NamespaceSlots(on_read, on_write) if _laid_out_as_is_thought() else None


@functools.cache
def _laid_out_as_is_thought() -> bool:
    expected = ((_GETATTRO, "PyObject_GenericGetAttr"), (_SETATTRO, "PyObject_GenericSetAttr"))
    return all(
        _slot(offset).value == ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
        for offset, name in expected
    )


def _slot(offset: int) -> ctypes.c_void_p:
    return ctypes.c_void_p.from_address(id(types.SimpleNamespace) + offset)


def _fill(functions: dict[int, int]) -> None:
    for offset, address in functions.items():
        _slot(offset).value = address
    # Instructions that have learned how instances are read must look again.
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(types.SimpleNamespace))
