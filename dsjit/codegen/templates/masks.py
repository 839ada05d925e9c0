"""How masks are packed into bits, and unpacked, as native steps. A work item is a block of elements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from dsjit.codegen.templates.operand import Operand, operand_of
from dsjit.fusion.views import Views
from dsjit.ir.graph import Node, Value
from dsjit.ops.masks import pack_mask, unpack_mask

__all__ = ["BLOCK", "BUFFERS", "BitsPlan", "BitsSizes", "BitsTemplate", "BitsWork", "plan_bits"]

BUFFERS: Final = ("output", "input")
"""The first args of the function: addresses."""

BLOCK: Final = 2**15
"""Elements of a work item: whole bytes of bits."""

_ELEMENTS_PER_NS: Final = 8


@dataclass(frozen=True, slots=True)
class BitsSizes:
    """elements: of the mask."""

    elements: int


@dataclass(frozen=True, slots=True)
class BitsTemplate:
    """packs: from booleans to bits; else the other way."""

    packs: bool

    @property
    def name(self) -> str:
        return "pack_mask" if self.packs else "unpack_mask"


@dataclass(frozen=True, slots=True)
class BitsPlan:
    """Booleans and bits, both row-major."""

    input: Operand
    output: Operand
    template: BitsTemplate
    sizes: BitsSizes

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The function's `BUFFERS`."""
        return self.output, self.input

    @property
    def buffers(self) -> tuple[Value, ...]:
        """Those that it reads and writes."""
        return self.output.base, self.input.base


@dataclass(frozen=True, slots=True)
class BitsWork:
    """How much there is to do, by the values of its `BitsSizes`."""

    block_ns: ClassVar[int] = BLOCK // _ELEMENTS_PER_NS

    def item_count(self, values: Mapping[str, int]) -> int:
        """Blocks of elements."""
        return -(-BitsSizes(**values).elements // BLOCK)

    def item_cost(self, values: Mapping[str, int]) -> int:
        """A rough estimate of the nanoseconds that one block takes."""
        return self.block_ns

    def arguments(self, values: Mapping[str, int]) -> tuple[int, ...]:
        """The integers that the function takes after its `BUFFERS`: the sizes."""
        return tuple(values.values())


def plan_bits(node: Node, views: Views) -> BitsPlan | None:
    """How the template computes `node`; None when it neither packs nor unpacks a mask on the CPU."""
    if node.op not in (pack_mask, unpack_mask):
        return None
    source, output = node.args[0], node.output
    place = operand_of(source, views)
    if place is None or not source.type.is_contiguous or output.type.device.type != "cpu" or output.type.numel == 0:
        return None
    packs = node.op is pack_mask
    elements = source.type.numel if packs else output.type.numel
    return BitsPlan(place, Operand(output, 0), BitsTemplate(packs), BitsSizes(elements))
