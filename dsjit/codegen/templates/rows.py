"""How `index_add` along the first dimension runs as a native step: `output[index[row]] += source[row]`, row by row.

A work item is a block of columns, which takes the rows in their order: one element is added up in the order in which
eager adds it, however many threads there are, and rows that are named twice need no lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch

from dsjit.codegen.templates.operand import Operand, operand_of
from dsjit.fusion.views import Views
from dsjit.ir.graph import Node, Value

__all__ = ["BUFFERS", "COLUMNS", "AddRowsPlan", "AddRowsSizes", "AddRowsTemplate", "AddRowsWork", "plan_add_rows"]

BUFFERS: Final = ("output", "first", "source", "index", "flag")
"""The first args of the function: addresses. The first operand may be where the output is; it is copied there if not.
The flag is an int64, which becomes 1 when a row is out of range."""

ADDED: Final = frozenset({torch.float32, torch.float64, torch.int32, torch.int64})
"""Dtypes whose sums are rounded once for each row; others are left to the library."""

_NUMBERS: Final = frozenset({torch.int32, torch.int64})

COLUMNS: Final = 64
"""Of a work item: several cache lines, so that threads seldom write to the same one."""

_BYTES_PER_NS: Final = 16
_ROW_NS: Final = 2
"""What the sums of a row cost that lies in a near cache, and what it costs to find one (measured on AVX-512)."""


@dataclass(frozen=True, slots=True)
class AddRowsSizes:
    """rows: of the source; columns: elements of one row; extent: rows of the output; index_stride: elements from one
    number to the next."""

    rows: int
    columns: int
    extent: int
    index_stride: int


@dataclass(frozen=True, slots=True)
class AddRowsTemplate:
    """dtype: of what is added; index: of the numbers of rows."""

    dtype: torch.dtype
    index: torch.dtype
    name: ClassVar[str] = "add_rows"


@dataclass(frozen=True, slots=True)
class AddRowsPlan:
    """`output[index[row]] += source[row]`, where output is `first` at the start."""

    first: Operand
    source: Operand
    index: Operand
    output: Operand
    template: AddRowsTemplate
    sizes: AddRowsSizes

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The first of the function's `BUFFERS`."""
        return self.output, self.first, self.source, self.index

    @property
    def buffers(self) -> tuple[Value, ...]:
        """Those that it reads and writes."""
        return tuple(operand.base for operand in self.operands)


@dataclass(frozen=True, slots=True)
class AddRowsWork:
    """How much there is to do, by the values of its `AddRowsSizes`. itemsize: bytes of an element."""

    itemsize: int

    def item_count(self, values: Mapping[str, int]) -> int:
        """Blocks of columns."""
        sizes = AddRowsSizes(**values)
        return -(-sizes.columns // COLUMNS)

    def item_cost(self, values: Mapping[str, int]) -> int:
        """A rough estimate of the nanoseconds that one block takes, at least 1."""
        sizes = AddRowsSizes(**values)
        width = min(COLUMNS, sizes.columns) * self.itemsize
        return max(1, sizes.rows * (_ROW_NS + width // _BYTES_PER_NS))

    def arguments(self, values: Mapping[str, int]) -> tuple[int, ...]:
        """The integers that the function takes after its `BUFFERS`: the sizes."""
        return tuple(values.values())


def plan_add_rows(node: Node, views: Views) -> AddRowsPlan | None:
    """How the template computes `node`; None when it is no sum of whole rows in memory."""
    if node.op is not torch.ops.aten.index_add.default or node.kwargs.get("alpha", 1) != 1:
        return None
    first, dim, index, source = node.args[:4]
    output, rank = node.output, len(node.output.type.shape)
    if output.type.device.type != "cpu" or output.type.dtype not in ADDED or dim not in (0, -rank):
        return None
    if len(index.type.shape) != 1 or len(source.type.shape) != rank or index.type.dtype not in _NUMBERS:
        return None
    if first.type != output.type or not output.type.is_contiguous or not source.type.is_contiguous:
        return None
    places = operand_of(first, views), operand_of(source, views), operand_of(index, views)
    if places[0] is None or places[1] is None or places[2] is None or output.type.numel == 0:
        return None
    extent = output.type.shape[0]
    sizes = AddRowsSizes(index.type.shape[0], output.type.numel // extent, extent, index.type.strides[0])
    template = AddRowsTemplate(output.type.dtype, index.type.dtype)
    return AddRowsPlan(places[0], places[1], places[2], Operand(output, 0), template, sizes)
