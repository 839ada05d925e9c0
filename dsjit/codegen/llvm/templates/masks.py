"""The LLVM IR that packs masks into bits and unpacks them: `define void @NAME(ptr %args, i64 %begin, i64 %end)`."""

from __future__ import annotations

from dataclasses import fields

import torch

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand
from dsjit.codegen.llvm.loops import counted_loop, i64, minimum, multiply
from dsjit.codegen.llvm.target import Target
from dsjit.codegen.llvm.templates.arguments import load_arguments
from dsjit.codegen.llvm.types import MEMORY_TYPES, vector
from dsjit.codegen.templates.masks import BLOCK, BUFFERS, BitsSizes, BitsTemplate

__all__ = ["emit_bits"]

_BYTE = MEMORY_TYPES[torch.uint8]


def emit_bits(template: BitsTemplate, name: str, target: Target) -> str:
    """The module with the function `name`."""
    emitter = _Emitter(FunctionBuilder(), target.vector_bytes)
    emitter.emit(template.packs)
    body = "\n".join(emitter.b.lines)
    function = f"define void @{name}(ptr %args, i64 %begin, i64 %end) nounwind {{\n{body}\n}}\n"
    return f'target triple = "{target.triple}"\n\n{function}'


class _Emitter:
    """lanes: elements that a register holds as bytes."""

    def __init__(self, b: FunctionBuilder, lanes: int) -> None:
        self.b = b
        self.lanes = lanes

    def emit(self, packs: bool) -> None:
        b = self.b
        b.label("entry")
        n = load_arguments(b, BUFFERS, [field.name for field in fields(BitsSizes)])
        first = multiply(b, Operand("i64", "%begin"), BLOCK)
        stop = minimum(b, multiply(b, Operand("i64", "%end"), BLOCK), n["elements"])
        whole = b.binary("and", stop, i64(-self.lanes))  # blocks begin at a multiple of it
        step = self._pack if packs else self._unpack
        bits, mask = (n["output"], n["input"]) if packs else (n["input"], n["output"])

        def many(at: Operand, _: list[Operand]) -> list[Operand]:
            step(b.offset(bits, _BYTE, b.binary("lshr", at, i64(3))), b.offset(mask, _BYTE, at))
            return []

        counted_loop(b, first, whole, self.lanes, [], many)
        rest = b.select(b.compare("icmp slt", whole, first), first, whole)
        self._rest(packs, bits, mask, rest, stop)
        b.emit("ret void")

    def _pack(self, bits: Operand, mask: Operand) -> None:
        b, type_ = self.b, vector(self.lanes, _BYTE)
        found = b.assign(type_, f"load {type_}, {mask}, align 1")
        some = b.compare("icmp ne", found, Operand(type_, "zeroinitializer"))
        b.emit(f"store {b.assign(f'i{self.lanes}', f'bitcast {some} to i{self.lanes}')}, {bits}, align 1")

    def _unpack(self, bits: Operand, mask: Operand) -> None:
        b, lanes = self.b, self.lanes
        bytes_, type_ = vector(lanes // 8, _BYTE), vector(lanes, _BYTE)
        found = b.assign(bytes_, f"load {bytes_}, {bits}, align 1")
        order = ", ".join(f"i32 {lane // 8}" for lane in range(lanes))
        spread = b.assign(type_, f"shufflevector {found}, {bytes_} poison, <{lanes} x i32> <{order}>")
        places = ", ".join(f"{_BYTE} {1 << lane % 8}" for lane in range(lanes))
        some = b.compare(
            "icmp ne", b.binary("and", spread, Operand(type_, f"<{places}>")), Operand(type_, "zeroinitializer")
        )
        b.emit(f"store {b.convert('zext', some, _BYTE)}, {mask}, align 1")

    def _rest(self, packs: bool, bits: Operand, mask: Operand, first: Operand, stop: Operand) -> None:
        """Elements one by one, from one that is the first of a byte."""
        b = self.b

        def one(at: Operand, carried: list[Operand]) -> list[Operand]:
            element = b.offset(mask, _BYTE, at)
            byte = b.offset(bits, _BYTE, b.binary("lshr", at, i64(3)))
            place = b.convert("trunc", b.binary("and", at, i64(7)), _BYTE)
            if not packs:
                found = b.assign(_BYTE, f"load {_BYTE}, {byte}, align 1")
                bit = b.binary("and", b.binary("lshr", found, place), Operand(_BYTE, "1"))
                b.emit(f"store {bit}, {element}, align 1")
                return []
            found = b.assign(_BYTE, f"load {_BYTE}, {element}, align 1")
            bit = b.convert("zext", b.compare("icmp ne", found, Operand(_BYTE, "0")), _BYTE)
            begins = b.compare("icmp eq", place, Operand(_BYTE, "0"))
            before = b.select(begins, Operand(_BYTE, "0"), carried[0])
            total = b.binary("or", before, b.binary("shl", bit, place))
            b.emit(f"store {total}, {byte}, align 1")
            return [total]

        counted_loop(b, first, stop, 1, [Operand(_BYTE, "0")] if packs else [], one)
