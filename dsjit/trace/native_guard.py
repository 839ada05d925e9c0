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
the storage's address. Where these are is found, and proved, by `trace.tensor_layout`.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

import torch
from llvmlite import binding as llvm

from dsjit.trace.tensor_layout import TensorLayout, find_tensor_layout

__all__ = ["NativeLoop", "RowKind", "TableBuilder", "native_loop"]


class RowKind(IntEnum):
    """What a row compares. Operands a, b, c, d are words; a NULL expectation means absent."""

    OBJECT = 0  # Py_TYPE(a) is b; and unless c is NULL, a.__dict__ is c
    TYPE_VERSION = 1  # the version tag of type a is b
    DICT = 2  # Py_TYPE(a) is c; when the version tag of dict a is b, the next d rows are skipped
    DICT_END = 3  # dict a passed row by row: note its version tag in row b
    DICT_KEYS = 4  # the keys of dict a, in order, are the d addresses at table offset b
    DICT_ITEM = 5  # dict a has c under key b
    LENGTH = 6  # list or tuple a has b elements
    LIST_ITEM = 7  # list a has c at index b
    TUPLE_ITEM = 8  # tuple a has c at index b
    SLOT = 9  # the generic attribute b of a is c
    CELL = 10  # cell a contains c
    TENSOR = 11  # Py_TYPE(a) is b, its TensorImpl is d, whose window equals the bytes at table offset c
    FUNCTION = 12  # function a has code b, defaults c, keyword defaults d
    SET_SIZE = 13  # set a has b elements
    SET_HAS = 14  # set a contains b


_HEADER_WORDS: Final = 6
_ROW_WORDS: Final = 5

_TYPE_VERSION_OFFSET: Final = 384
"""Bytes from the start of a `PyTypeObject` to `tp_version_tag` (Include/cpython/object.h, 64-bit builds)."""

_DICT_VERSION_OFFSET: Final = 24
"""Bytes from the start of a `PyDictObject` to `ma_version_tag` (Include/cpython/dictobject.h, until 3.12)."""

_API: Final = {
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
  %more = icmp ult i64 %i, %rows
  br i1 %more, label %body, label %gather
body:
  %offset = mul i64 %i, ROW_WORDS
  %row = getelementptr i64, ptr %first, i64 %offset
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
  %after = add i64 %i, %d
  %skipped = select i1 %fresh, i64 %after, i64 %i
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

next:
  %step_i = phi i64 [ %i, %object_dict ], [ %i, %object_compare ], [ %i, %type_version ], [ %skipped, %dict_version ],
    [ %i, %dict_end ], [ %i, %keys_loop ], [ %i, %dict_item_absent ], [ %i, %dict_item_error ], [ %i, %length ],
    [ %i, %list_item ], [ %i, %tuple_item ], [ %i, %slot_decide ], [ %i, %cell_decide ], [ %i, %tensor_window ],
    [ %i, %function_keywords ], [ %i, %set_size ], [ %i, %set_has ]
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


def _module_text(layout: TensorLayout, has_dict_versions: bool) -> str:
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
        "HEADER_WORDS": _HEADER_WORDS,
        "ROW_WORDS": _ROW_WORDS,
        "TYPE_VERSION_OFFSET": _TYPE_VERSION_OFFSET,
        "DICT_VERSION_OFFSET": _DICT_VERSION_OFFSET,
        "HAS_DICT_VERSIONS": "true" if has_dict_versions else "false",
        "IMPL_OFFSET": layout.impl_offset,
        "WINDOW": "\n".join(window),
    }.items():
        loop = loop.replace(name, str(value))
    declares = [f"declare {kind.replace('(', f'@{name}(', 1)}" for name, kind in _API.items()]
    return "\n".join([*declares, loop])


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
    keep_alive: tuple[Any, ...]


@functools.cache
def native_loop() -> NativeLoop | None:
    """The loop for this process, or None where this interpreter or torch build does not allow it."""
    layout = find_tensor_layout()
    if layout is None or not _type_versions_work():
        return None
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for name in _API:
        address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
        llvm.add_symbol(name, address)
    module = llvm.parse_assembly(_module_text(layout, dict_versions_work()))
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    definition = _MethodDef(b"verify", engine.get_function_address("verify"), _METH_FASTCALL, None)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    verify = make(ctypes.addressof(definition), None, None)
    return NativeLoop(verify, layout, (definition, engine))


def type_version(cls: type) -> int:
    """The version tag of a class, 0 when the interpreter gives it none."""
    getattr(cls, "__dsjit_no_such_attribute__", None)  # a lookup makes the interpreter assign a tag
    return ctypes.c_uint32.from_address(id(cls) + _TYPE_VERSION_OFFSET).value


def dict_version(entries: dict[Any, Any]) -> int:
    """The version tag of a dictionary."""
    return ctypes.c_uint64.from_address(id(entries) + _DICT_VERSION_OFFSET).value


def _type_versions_work() -> bool:
    """Whether each way to change a class or its base changes `type_version`."""

    class Base:
        pass

    class Derived(Base):
        value = 1

    seen = [type_version(Derived)]
    for change in (
        lambda: setattr(Derived, "value", 2),
        lambda: setattr(Base, "other", 3),
        lambda: delattr(Base, "other"),
        lambda: setattr(Derived, "__getattribute__", object.__getattribute__),
        lambda: setattr(Derived, "__bases__", (type("Other", (Base,), {}),)),
    ):
        before = seen[-1]
        change()
        if ctypes.c_uint32.from_address(id(Derived) + _TYPE_VERSION_OFFSET).value == before:
            return False
        seen.append(type_version(Derived))
    return 0 not in seen and len(set(seen)) == len(seen)


@functools.cache
def dict_versions_work() -> bool:
    """Whether each way to change a dictionary or an instance's attributes changes `dict_version`."""

    class Thing:
        pass

    thing = Thing()
    entries = thing.__dict__

    def store(value: object) -> None:
        for _ in range(64):  # often enough for the interpreter to specialise the store
            thing.value = value  # type: ignore[attr-defined]

    store(0)
    changes: Sequence[Callable[[], object]] = (
        lambda: store(1),
        lambda: setattr(thing, "value", 2),
        lambda: setattr(thing, "new", 3),
        lambda: delattr(thing, "new"),
        lambda: entries.__setitem__("value", 4),
        lambda: entries.update(value=5),
        lambda: entries.setdefault("more", 6),
        lambda: entries.pop("more"),
        lambda: entries.__ior__({"value": 7}),
        lambda: entries.popitem(),
        lambda: entries.update(value=8),
        lambda: entries.clear(),
    )
    for change in changes:
        before = dict_version(entries)
        change()
        if dict_version(entries) == before:
            return False
    return True


@dataclass(slots=True)
class TableBuilder:
    """Collects rows, and packs them into a table."""

    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    blobs: list[bytes] = field(default_factory=list)
    blob_bytes: int = 0
    blob_rows: list[tuple[int, int]] = field(default_factory=list)

    def row(self, kind: RowKind, a: int, b: int = 0, c: int = 0, d: int = 0) -> int:
        """Append a row; returns its number."""
        self.rows.append((int(kind), a, b, c, d))
        return len(self.rows) - 1

    def blob_row(self, kind: RowKind, operand: int, blob: bytes, a: int, b: int = 0, c: int = 0, d: int = 0) -> None:
        """Append a row whose operand number `operand` (0 for a) is the table offset of `blob`."""
        self.blob_rows.append((self.row(kind, a, b, c, d), operand))
        self.rows[-1] = tuple(
            self.blob_bytes if position == operand + 1 else word for position, word in enumerate(self.rows[-1])
        )  # type: ignore[assignment]
        self.blobs.append(blob)
        self.blob_bytes += len(blob)

    def tensor(self, layout: TensorLayout, tensor: torch.Tensor) -> None:
        """The metadata of a known tensor (of at most five dimensions) stays as it is now."""
        impl = tensor._cdata
        words = (ctypes.c_uint64.from_address(impl + offset).value for offset in layout.window)
        blob = struct.pack(f"{len(layout.window)}Q", *words)
        self.blob_row(RowKind.TENSOR, 2, blob, id(tensor), id(type(tensor)), 0, impl)

    def pack(self, out_count: int, arguments: Sequence[int], bound: Sequence[tuple[int, int]]) -> bytearray:
        """The table. arguments: position in the output of each argument tensor; bound: (position, address)."""
        start = 8 * (_HEADER_WORDS + _ROW_WORDS * len(self.rows))
        rows = [list(row) for row in self.rows]
        for number, operand in self.blob_rows:
            rows[number][operand + 1] += start
        arguments_at = start + self.blob_bytes
        bound_at = arguments_at + 8 * len(arguments)
        header = (len(rows), out_count, len(arguments), len(bound), arguments_at, bound_at)
        words = [word for row in rows for word in row]
        tail = [*arguments, *(word for pair in bound for word in pair)]
        return bytearray(
            struct.pack(f"{_HEADER_WORDS + len(words)}Q", *header, *words)
            + b"".join(self.blobs)
            + struct.pack(f"{len(tail)}Q", *tail)
        )


def _operand_at(row: int) -> int:
    return 8 * (_HEADER_WORDS + _ROW_WORDS * row + 2)


def row_operand(table: bytearray, row: int) -> int:
    """Operand b of a row."""
    (word,) = struct.unpack_from("Q", table, _operand_at(row))
    return int(word)


def set_row_operand(table: bytearray, row: int, word: int) -> None:
    """Change operand b of a row."""
    struct.pack_into("Q", table, _operand_at(row), word)
