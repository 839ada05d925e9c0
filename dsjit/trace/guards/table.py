"""The table of a bound guard: what the native loop (`trace.guards.native_loop`) compares, row by row."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

import torch

from dsjit.trace.guards.tensor_layout import TensorLayout
from dsjit.trace.guards.version_tags import dict_version, dict_versions_work

__all__ = ["HEADER_WORDS", "ROWS_AHEAD", "ROW_WORDS", "RowKind", "TableBuilder", "row_operand", "set_row_operand"]

HEADER_WORDS: Final = 6
ROW_WORDS: Final = 5

ROWS_AHEAD: Final = 8
"""How far ahead the objects that rows speak of are fetched into the cache (their addresses may be stale by then)."""


class RowKind(IntEnum):
    """What a row compares. Operands a, b, c, d are words; a NULL expectation means absent."""

    OBJECT = 0  # Py_TYPE(a) is b; and unless c is NULL, a.__dict__ is c
    TYPE_VERSION = 1  # the version tag of type a is b
    DICT = 2  # Py_TYPE(a) is c; unless the version tag of dict a is b, go on at row d
    DICT_END = 3  # dict a passed row by row: note its version tag in row b, and go on behind that row
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
    CLOSURE = 15  # function a has closure b
    CALL = 16  # a() is b


@dataclass(slots=True)
class TableBuilder:
    """Collects rows, and packs them into a table.

    rows: run in order. details: rows that only run when the version tag of their dictionary differs; they lie behind
    all others, so that the usual path reads little memory.
    """

    rows: list[list[int]] = field(default_factory=list)
    details: list[list[int]] = field(default_factory=list)
    blobs: list[bytes] = field(default_factory=list)
    blob_bytes: int = 0
    blob_rows: list[tuple[list[int], int]] = field(default_factory=list)
    dictionaries: list[tuple[int, int]] = field(default_factory=list)

    def row(self, kind: RowKind, a: int, b: int = 0, c: int = 0, d: int = 0) -> int:
        """Append a row; returns its number."""
        self.rows.append([int(kind), a, b, c, d])
        return len(self.rows) - 1

    def dictionary(self, entries: dict[Any, Any], items: Sequence[tuple[int, int]], keys: Sequence[int] | None) -> None:
        """Entries of one dictionary, as addresses of keys and values (0: absent), and the addresses of all its keys."""
        address = id(entries)
        version = dict_version(entries) if dict_versions_work() else 0
        row = self.row(RowKind.DICT, address, version, id(type(entries)))
        self.dictionaries.append((row, len(self.details)))
        if keys is not None:
            detail = [int(RowKind.DICT_KEYS), address, 0, 0, len(keys)]
            self.details.append(detail)
            self._blob(detail, 1, struct.pack(f"{len(keys)}Q", *keys))
        self.details += [[int(RowKind.DICT_ITEM), address, key, value, 0] for key, value in items]
        self.details.append([int(RowKind.DICT_END), address, row, 0, 0])

    def _blob(self, row: list[int], operand: int, blob: bytes) -> None:
        """Store bytes in the table, and their table offset in operand number `operand` (0 for a) of a row."""
        row[operand + 1] = self.blob_bytes
        self.blob_rows.append((row, operand))
        self.blobs.append(blob)
        self.blob_bytes += len(blob)

    def tensor(self, layout: TensorLayout, tensor: torch.Tensor) -> None:
        """The metadata of a known tensor (of at most five dimensions) stays as it is now."""
        impl = tensor._cdata
        words = (ctypes.c_uint64.from_address(impl + offset).value for offset in layout.window)
        blob = struct.pack(f"{len(layout.window)}Q", *words)
        row = self.rows[self.row(RowKind.TENSOR, id(tensor), id(type(tensor)), 0, impl)]
        self._blob(row, 2, blob)

    def pack(self, out_count: int, arguments: Sequence[int], bound: Sequence[tuple[int, int]]) -> bytearray:
        """The table. arguments: position in the output of each argument tensor; bound: (position, address)."""
        for row, detail in self.dictionaries:
            self.rows[row][4] = len(self.rows) + 1 + detail
        nothing = [0] * ROW_WORDS
        # Reaching the row behind the last one means success, so that no detail may have its number.
        every = [*self.rows, nothing, *self.details, *(nothing for _ in range(ROWS_AHEAD))]
        start = 8 * (HEADER_WORDS + ROW_WORDS * len(every))
        for blob_row, operand in self.blob_rows:
            blob_row[operand + 1] += start
        arguments_at = start + self.blob_bytes
        bound_at = arguments_at + 8 * len(arguments)
        header = (len(self.rows), out_count, len(arguments), len(bound), arguments_at, bound_at)
        words = [word for row_ in every for word in row_]
        tail = [*arguments, *(word for pair in bound for word in pair)]
        return bytearray(
            struct.pack(f"{HEADER_WORDS + len(words)}Q", *header, *words)
            + b"".join(self.blobs)
            + struct.pack(f"{len(tail)}Q", *tail)
        )


def _operand_at(row: int) -> int:
    return 8 * (HEADER_WORDS + ROW_WORDS * row + 2)


def row_operand(table: bytearray, row: int) -> int:
    """Operand b of a row."""
    (word,) = struct.unpack_from("Q", table, _operand_at(row))
    return int(word)


def set_row_operand(table: bytearray, row: int, word: int) -> None:
    """Change operand b of a row."""
    struct.pack_into("Q", table, _operand_at(row), word)
