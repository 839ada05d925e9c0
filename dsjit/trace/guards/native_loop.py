"""The native loop that checks a bound guard: one generic function for all guards, compiled once per process.

A *table* (a `bytearray`) holds rows of five words: a kind and four operands, mostly addresses of live objects. The
loop compares what each row's container holds now with the address noted when the table was made, through CPython's
public C API. About 2 to 10 ns a row, against 300 ns for a fact walked in Python.

Why raw addresses are safe: rows come parents first, and a row is only reached when the row above it has found the
very address that it is about to read from in a live container. Constants are kept alive by the binding, so their
addresses cannot be reused for other constants.

Two facts of CPython shorten the loop. They are probed at start-up, and the loop does without the first (or there is
no native loop at all, without the second) where they do not hold:

- a dictionary's version tag (PEP 509; CPython 3.11 and 3.12) changes with each modification, so that an unmodified
  dictionary is one compare;
- a class's version tag (`tp_version_tag`) changes with each modification of the class or its bases.

A known tensor is compared by the bytes of its `TensorImpl` that hold sizes, strides, dtype, device, layout, keys and
the storage's address. Where these are is found, and proved, by `trace.guards.tensor_layout`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from dsjit.once import once
from dsjit.trace.guards.native_code import compile_native
from dsjit.trace.guards.table import HEADER_WORDS, ROW_WORDS, ROWS_AHEAD
from dsjit.trace.guards.tensor_layout import TensorLayout, find_tensor_layout
from dsjit.trace.guards.version_tags import (
    DICT_VERSION_OFFSET,
    TYPE_VERSION_OFFSET,
    dict_versions_work,
    type_versions_work,
)

__all__ = ["NativeLoop", "native_loop"]

_API: Final = {
    "llvm.prefetch.p0": "void (ptr, i32, i32, i32)",
    "PyByteArray_AsString": "ptr (ptr)",
    "PyDict_GetItemWithError": "ptr (ptr, ptr)",
    "PyDict_Size": "i64 (ptr)",
    "PyDict_Next": "i32 (ptr, ptr, ptr, ptr)",
    "PyObject_GenericGetDict": "ptr (ptr, ptr)",
    "PyObject_GenericGetAttr": "ptr (ptr, ptr)",
    "PyList_GetItem": "ptr (ptr, i64)",
    "PyTuple_GetItem": "ptr (ptr, i64)",
    "PyCell_Get": "ptr (ptr)",
    "PyFunction_GetCode": "ptr (ptr)",
    "PyFunction_GetDefaults": "ptr (ptr)",
    "PyFunction_GetKwDefaults": "ptr (ptr)",
    "PyFunction_GetClosure": "ptr (ptr)",
    "PyObject_CallNoArgs": "ptr (ptr)",
    "PySet_Size": "i64 (ptr)",
    "PySet_Contains": "i32 (ptr, ptr)",
    "PyErr_Clear": "void ()",
    "PyErr_Occurred": "ptr ()",
    "PyTuple_New": "ptr (i64)",
    "PyTuple_SetItem": "i32 (ptr, i64, ptr)",
    "PyLong_FromLongLong": "ptr (i64)",
    "Py_IncRef": "void (ptr)",
    "Py_DecRef": "void (ptr)",
}

_LOOP: Final = """
define ptr @verify(ptr %self, ptr %args, i64 %nargs) {
entry:
  %position = alloca i64
  %key = alloca ptr
  %item = alloca ptr
  %table_object = load ptr, ptr %args
  %table = call ptr @PyByteArray_AsString(ptr %table_object)
  %rows = load i64, ptr %table
  %first = getelementptr i64, ptr %table, i64 HEADER_WORDS
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next_i, %next ]
  %more = icmp ne i64 %i, %rows
  br i1 %more, label %body, label %gather
body:
  %offset = mul i64 %i, ROW_WORDS
  %row = getelementptr i64, ptr %first, i64 %offset
  %ahead_at = getelementptr i64, ptr %row, i64 AHEAD_WORDS
  %ahead = load ptr, ptr %ahead_at
  call void @llvm.prefetch.p0(ptr %ahead, i32 0, i32 3, i32 1)
  %kind = load i64, ptr %row
  %a_at = getelementptr i64, ptr %row, i64 1
  %a = load ptr, ptr %a_at
  %b_at = getelementptr i64, ptr %row, i64 2
  %b = load i64, ptr %b_at
  %bp = inttoptr i64 %b to ptr
  %c_at = getelementptr i64, ptr %row, i64 3
  %c = load i64, ptr %c_at
  %cp = inttoptr i64 %c to ptr
  %d_at = getelementptr i64, ptr %row, i64 4
  %d = load i64, ptr %d_at
  switch i64 %kind, label %fail [
    i64 0, label %object
    i64 1, label %type_version
    i64 2, label %dict
    i64 3, label %dict_end
    i64 4, label %dict_keys
    i64 5, label %dict_item
    i64 6, label %length
    i64 7, label %list_item
    i64 8, label %tuple_item
    i64 9, label %slot
    i64 10, label %cell
    i64 11, label %tensor
    i64 12, label %function
    i64 13, label %set_size
    i64 14, label %set_has
    i64 15, label %closure
    i64 16, label %call
  ]

object:
  %object_type_at = getelementptr i64, ptr %a, i64 1
  %object_type = load i64, ptr %object_type_at
  %object_same = icmp eq i64 %object_type, %b
  br i1 %object_same, label %object_dict, label %fail
object_dict:
  %no_dict = icmp eq i64 %c, 0
  br i1 %no_dict, label %next, label %object_get
object_get:
  %owned = call ptr @PyObject_GenericGetDict(ptr %a, ptr null)
  %owned_null = icmp eq ptr %owned, null
  br i1 %owned_null, label %fail, label %object_compare
object_compare:
  call void @Py_DecRef(ptr %owned)
  %owned_same = icmp eq ptr %owned, %cp
  br i1 %owned_same, label %next, label %fail

type_version:
  %tag_at = getelementptr i8, ptr %a, i64 TYPE_VERSION_OFFSET
  %tag = load i32, ptr %tag_at
  %tag_wide = zext i32 %tag to i64
  %tag_same = icmp eq i64 %tag_wide, %b
  br i1 %tag_same, label %next, label %fail

dict:
  %dict_type_at = getelementptr i64, ptr %a, i64 1
  %dict_type = load i64, ptr %dict_type_at
  %dict_same = icmp eq i64 %dict_type, %c
  br i1 %dict_same, label %dict_version, label %fail
dict_version:
  %version_at = getelementptr i8, ptr %a, i64 DICT_VERSION_OFFSET
  %version = load i64, ptr %version_at
  %version_same = icmp eq i64 %version, %b
  %fresh = and i1 %version_same, HAS_DICT_VERSIONS
  %detail = sub i64 %d, 1
  %skipped = select i1 %fresh, i64 %i, i64 %detail
  br label %next

dict_end:
  %now_at = getelementptr i8, ptr %a, i64 DICT_VERSION_OFFSET
  %now = load i64, ptr %now_at
  %noted_row = mul i64 %b, ROW_WORDS
  %noted_word = add i64 %noted_row, 2
  %noted_at = getelementptr i64, ptr %first, i64 %noted_word
  store i64 %now, ptr %noted_at
  br label %next

dict_keys:
  %size = call i64 @PyDict_Size(ptr %a)
  %size_same = icmp eq i64 %size, %d
  br i1 %size_same, label %keys_begin, label %fail
keys_begin:
  %keys = getelementptr i8, ptr %table, i64 %b
  store i64 0, ptr %position
  br label %keys_loop
keys_loop:
  %k = phi i64 [ 0, %keys_begin ], [ %next_k, %keys_same ]
  %found = call i32 @PyDict_Next(ptr %a, ptr %position, ptr %key, ptr %item)
  %ended = icmp eq i32 %found, 0
  br i1 %ended, label %next, label %keys_compare
keys_compare:
  %key_now = load ptr, ptr %key
  %key_at = getelementptr ptr, ptr %keys, i64 %k
  %key_then = load ptr, ptr %key_at
  %key_equal = icmp eq ptr %key_now, %key_then
  br i1 %key_equal, label %keys_same, label %fail
keys_same:
  %next_k = add i64 %k, 1
  br label %keys_loop

dict_item:
  %entry_now = call ptr @PyDict_GetItemWithError(ptr %a, ptr %bp)
  %entry_same = icmp eq ptr %entry_now, %cp
  br i1 %entry_same, label %dict_item_absent, label %fail
dict_item_absent:
  %entry_null = icmp eq ptr %entry_now, null
  br i1 %entry_null, label %dict_item_error, label %next
dict_item_error:
  %error = call ptr @PyErr_Occurred()
  %error_null = icmp eq ptr %error, null
  br i1 %error_null, label %next, label %fail

length:
  %length_at = getelementptr i64, ptr %a, i64 2
  %length_now = load i64, ptr %length_at
  %length_same = icmp eq i64 %length_now, %b
  br i1 %length_same, label %next, label %fail

list_item:
  %list_now = call ptr @PyList_GetItem(ptr %a, i64 %b)
  %list_same = icmp eq ptr %list_now, %cp
  br i1 %list_same, label %next, label %fail

tuple_item:
  %tuple_now = call ptr @PyTuple_GetItem(ptr %a, i64 %b)
  %tuple_same = icmp eq ptr %tuple_now, %cp
  br i1 %tuple_same, label %next, label %fail

slot:
  %slot_now = call ptr @PyObject_GenericGetAttr(ptr %a, ptr %bp)
  %slot_null = icmp eq ptr %slot_now, null
  br i1 %slot_null, label %slot_clear, label %slot_compare
slot_clear:
  call void @PyErr_Clear()
  br label %slot_decide
slot_compare:
  call void @Py_DecRef(ptr %slot_now)
  br label %slot_decide
slot_decide:
  %slot_same = icmp eq ptr %slot_now, %cp
  br i1 %slot_same, label %next, label %fail

cell:
  %cell_now = call ptr @PyCell_Get(ptr %a)
  %cell_null = icmp eq ptr %cell_now, null
  br i1 %cell_null, label %cell_decide, label %cell_drop
cell_drop:
  call void @Py_DecRef(ptr %cell_now)
  br label %cell_decide
cell_decide:
  %cell_same = icmp eq ptr %cell_now, %cp
  br i1 %cell_same, label %next, label %fail

tensor:
  %tensor_type_at = getelementptr i64, ptr %a, i64 1
  %tensor_type = load i64, ptr %tensor_type_at
  %impl_at = getelementptr i8, ptr %a, i64 IMPL_OFFSET
  %impl = load i64, ptr %impl_at
  %tensor_same = icmp eq i64 %tensor_type, %b
  %impl_same = icmp eq i64 %impl, %d
  %handle_same = and i1 %tensor_same, %impl_same
  br i1 %handle_same, label %tensor_window, label %fail
tensor_window:
  %impl_ptr = inttoptr i64 %impl to ptr
  %noted = getelementptr i8, ptr %table, i64 %c
WINDOW
  %window_same = icmp eq i64 %difference, 0
  br i1 %window_same, label %next, label %fail

function:
  %code_now = call ptr @PyFunction_GetCode(ptr %a)
  %code_same = icmp eq ptr %code_now, %bp
  br i1 %code_same, label %function_defaults, label %fail
function_defaults:
  %defaults_now = call ptr @PyFunction_GetDefaults(ptr %a)
  %defaults_same = icmp eq ptr %defaults_now, %cp
  br i1 %defaults_same, label %function_keywords, label %fail
function_keywords:
  %dp = inttoptr i64 %d to ptr
  %keywords_now = call ptr @PyFunction_GetKwDefaults(ptr %a)
  %keywords_same = icmp eq ptr %keywords_now, %dp
  br i1 %keywords_same, label %next, label %fail

set_size:
  %set_now = call i64 @PySet_Size(ptr %a)
  %set_same = icmp eq i64 %set_now, %b
  br i1 %set_same, label %next, label %fail

set_has:
  %has = call i32 @PySet_Contains(ptr %a, ptr %bp)
  %has_it = icmp eq i32 %has, 1
  br i1 %has_it, label %next, label %fail

closure:
  %closure_now = call ptr @PyFunction_GetClosure(ptr %a)
  %closure_same = icmp eq ptr %closure_now, %bp
  br i1 %closure_same, label %next, label %fail

call:
  %answer = call ptr @PyObject_CallNoArgs(ptr %a)
  %answer_null = icmp eq ptr %answer, null
  br i1 %answer_null, label %fail, label %call_compare
call_compare:
  call void @Py_DecRef(ptr %answer)
  %answer_same = icmp eq ptr %answer, %bp
  br i1 %answer_same, label %next, label %fail

next:
  %step_i = phi i64 [ %i, %object_dict ], [ %i, %object_compare ], [ %i, %type_version ], [ %skipped, %dict_version ],
    [ %b, %dict_end ], [ %i, %keys_loop ], [ %i, %dict_item_absent ], [ %i, %dict_item_error ], [ %i, %length ],
    [ %i, %list_item ], [ %i, %tuple_item ], [ %i, %slot_decide ], [ %i, %cell_decide ], [ %i, %tensor_window ],
    [ %i, %function_keywords ], [ %i, %set_size ], [ %i, %set_has ],
    [ %i, %closure ], [ %i, %call_compare ]
  %next_i = add i64 %step_i, 1
  br label %loop

fail:
  call void @PyErr_Clear()
  %failed = call ptr @PyLong_FromLongLong(i64 %i)
  ret ptr %failed

gather:
  %out_count_at = getelementptr i64, ptr %table, i64 1
  %out_count = load i64, ptr %out_count_at
  %arg_count_at = getelementptr i64, ptr %table, i64 2
  %arg_count = load i64, ptr %arg_count_at
  %bound_count_at = getelementptr i64, ptr %table, i64 3
  %bound_count = load i64, ptr %bound_count_at
  %arg_offset_at = getelementptr i64, ptr %table, i64 4
  %arg_offset = load i64, ptr %arg_offset_at
  %bound_offset_at = getelementptr i64, ptr %table, i64 5
  %bound_offset = load i64, ptr %bound_offset_at
  %arg_indices = getelementptr i8, ptr %table, i64 %arg_offset
  %bound = getelementptr i8, ptr %table, i64 %bound_offset
  %out = call ptr @PyTuple_New(i64 %out_count)
  %out_null = icmp eq ptr %out, null
  br i1 %out_null, label %done, label %args_loop
args_loop:
  %p = phi i64 [ 0, %gather ], [ %next_p, %args_body ]
  %p_more = icmp ult i64 %p, %arg_count
  br i1 %p_more, label %args_body, label %bound_loop
args_body:
  %next_p = add i64 %p, 1
  %arg_at = getelementptr ptr, ptr %args, i64 %next_p
  %arg = load ptr, ptr %arg_at
  %arg_index_at = getelementptr i64, ptr %arg_indices, i64 %p
  %arg_index = load i64, ptr %arg_index_at
  call void @Py_IncRef(ptr %arg)
  call i32 @PyTuple_SetItem(ptr %out, i64 %arg_index, ptr %arg)
  br label %args_loop
bound_loop:
  %q = phi i64 [ 0, %args_loop ], [ %next_q, %bound_body ]
  %q_more = icmp ult i64 %q, %bound_count
  br i1 %q_more, label %bound_body, label %done
bound_body:
  %next_q = add i64 %q, 1
  %pair = mul i64 %q, 2
  %index_at = getelementptr i64, ptr %bound, i64 %pair
  %index = load i64, ptr %index_at
  %value_at = getelementptr i64, ptr %index_at, i64 1
  %value = load ptr, ptr %value_at
  call void @Py_IncRef(ptr %value)
  call i32 @PyTuple_SetItem(ptr %out, i64 %index, ptr %value)
  br label %bound_loop
done:
  ret ptr %out
}
"""


def _loop_text(layout: TensorLayout, has_dict_versions: bool) -> str:
    window = []
    accumulated = "0"
    for position, offset in enumerate(layout.window):
        window.append(
            f"  %w{position}_at = getelementptr i8, ptr %impl_ptr, i64 {offset}\n"
            f"  %w{position} = load i64, ptr %w{position}_at\n"
            f"  %n{position}_at = getelementptr i64, ptr %noted, i64 {position}\n"
            f"  %n{position} = load i64, ptr %n{position}_at\n"
            f"  %x{position} = xor i64 %w{position}, %n{position}\n"
            f"  %o{position} = or i64 {accumulated}, %x{position}"
        )
        accumulated = f"%o{position}"
    window.append(f"  %difference = or i64 {accumulated}, 0")
    loop = _LOOP
    for name, value in {
        "HEADER_WORDS": HEADER_WORDS,
        "ROW_WORDS": ROW_WORDS,
        "TYPE_VERSION_OFFSET": TYPE_VERSION_OFFSET,
        "DICT_VERSION_OFFSET": DICT_VERSION_OFFSET,
        "HAS_DICT_VERSIONS": "true" if has_dict_versions else "false",
        "IMPL_OFFSET": layout.impl_offset,
        "WINDOW": "\n".join(window),
        "AHEAD_WORDS": ROW_WORDS * ROWS_AHEAD + 1,
    }.items():
        loop = loop.replace(name, str(value))
    return loop


class _MethodDef(ctypes.Structure):
    """`PyMethodDef` of CPython's C API."""

    _fields_ = [
        ("ml_name", ctypes.c_char_p),
        ("ml_meth", ctypes.c_void_p),
        ("ml_flags", ctypes.c_int),
        ("ml_doc", ctypes.c_char_p),
    ]


_METH_FASTCALL: Final = 0x0080


@dataclass(frozen=True, slots=True)
class NativeLoop:
    """The compiled loop.

    verify: `verify(table, *argument_tensors)` returns the tuple of input tensors, or the number of the row that
        failed.
    layout: where a tensor's metadata is.
    """

    verify: Callable[..., Any]
    layout: TensorLayout


@once
def native_loop() -> NativeLoop | None:
    """The loop for this process, or None where this interpreter or torch build does not allow it."""
    layout = find_tensor_layout()
    if layout is None or not type_versions_work():
        return None
    engine = compile_native(_loop_text(layout, dict_versions_work()), _API)
    definition = _MethodDef(b"verify", engine.get_function_address("verify"), _METH_FASTCALL, None)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p]
    # The function owns what it runs.
    verify = make(ctypes.addressof(definition), (definition, engine), None)
    return NativeLoop(verify, layout)
