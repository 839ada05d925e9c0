"""Loads and stores of scalars and of lanes: contiguous, reversed, strided, masked, gathered."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand, lanes, mangle
from dsjit.codegen.llvm.loops import i64, multiply
from dsjit.codegen.llvm.target import Target
from dsjit.codegen.llvm.types import MEMORY_TYPES, first_lanes, lane_numbers, literal, number, splat, vector

__all__ = ["Mask", "gather_lanes", "load_lanes", "load_scalar", "prefetch", "store_lanes", "store_scalar"]


@dataclass(frozen=True, slots=True)
class Mask:
    """Which lanes are active. `active`: when they are known to be the first so many; `count`: when they are the first
    so many, which is known when the kernel runs (i32)."""

    operand: Operand
    active: int | None = None
    count: Operand | None = None

    @staticmethod
    def first(count: int, active: int) -> Mask:
        return Mask(first_lanes(count, active), active)

    def both(self, b: FunctionBuilder, other: Operand) -> Mask:
        return Mask(b.binary("and", self.operand, other))


def load_scalar(
    b: FunctionBuilder, dtype: torch.dtype, pointer: Operand, mask: Operand | None, other: float | int | bool
) -> Operand:
    """One element in its register form; where `mask` (an i1) is false, memory is not touched and `other` results."""
    type_ = MEMORY_TYPES[dtype]
    if mask is None:
        return _to_register(b, dtype, b.assign(type_, f"load {type_}, {pointer}, align {dtype.itemsize}"))
    one = vector(1, type_)
    lane = b.assign(vector(1, "i1"), f"insertelement <1 x i1> poison, {mask}, i32 0")
    loaded = _masked_load(b, dtype, one, pointer, lane, splat(1, _stored_literal(other, dtype)))
    return _to_register(b, dtype, b.assign(type_, f"extractelement {loaded}, i32 0"))


def load_lanes(
    b: FunctionBuilder,
    target: Target,
    dtype: torch.dtype,
    pointer: Operand,
    step: int | Operand,
    mask: Mask | None,
    other: float | int | bool = 0,
) -> Operand:
    """A register of the elements at pointer, pointer + step, pointer + 2*step, ... (steps in elements).

    Lanes that `mask` excludes are not touched in memory and hold `other`.
    """
    count = target.lanes
    type_ = MEMORY_TYPES[dtype]
    whole = vector(count, type_)
    passthru = splat(count, _stored_literal(other, dtype))
    if step == 1:
        if mask is None:
            loaded = b.assign(whole, f"load {whole}, {pointer}, align {dtype.itemsize}")
        else:
            loaded = _masked_load(b, dtype, whole, pointer, mask.operand, passthru)
    elif step == -1:
        lowest = b.offset(pointer, type_, Operand("i64", str(1 - count)))
        if mask is None:
            backwards = b.assign(whole, f"load {whole}, {lowest}, align {dtype.itemsize}")
        else:
            backwards = _masked_load(b, dtype, whole, lowest, _reversed_mask(b, mask), passthru)
        loaded = _reverse(b, backwards)
    elif (mask is None or mask.active is not None) and not _has_gather(target, dtype):
        loaded = passthru
        for lane, address in _lane_addresses(b, type_, pointer, step, mask, count):
            element = b.assign(type_, f"load {type_}, {address}, align {dtype.itemsize}")
            loaded = b.assign(whole, f"insertelement {loaded}, {element}, i32 {lane}")
    else:
        addresses = _addresses(b, type_, pointer, step, count)
        lanes_mask = _mask_operand(mask, count)
        symbol = f"llvm.masked.gather.{mangle(whole)}.v{count}p0"
        alignment = Operand("i32", str(dtype.itemsize))
        loaded = b.call(whole, symbol, [addresses, alignment, lanes_mask, passthru])
    return _to_register(b, dtype, loaded)


def gather_lanes(
    b: FunctionBuilder,
    target: Target,
    dtype: torch.dtype,
    pointer: Operand,
    places: Operand,
    mask: Mask | None,
    other: float | int | bool = 0,
) -> Operand:
    """A register of the elements that lie so many elements after `pointer`: `places` is a vector of i64. The mask is as
    in `load_lanes`."""
    count = target.lanes
    type_ = MEMORY_TYPES[dtype]
    whole = vector(count, type_)
    loaded = splat(count, _stored_literal(other, dtype))
    if (mask is None or mask.active is not None) and not _has_gather(target, dtype):
        for lane in range(count if mask is None or mask.active is None else mask.active):
            place = b.assign("i64", f"extractelement {places}, i32 {lane}")
            address = b.offset(pointer, type_, place)
            element = b.assign(type_, f"load {type_}, {address}, align {dtype.itemsize}")
            loaded = b.assign(whole, f"insertelement {loaded}, {element}, i32 {lane}")
    else:
        symbol = f"llvm.masked.gather.{mangle(whole)}.v{count}p0"
        alignment = Operand("i32", str(dtype.itemsize))
        addresses = b.offset(pointer, type_, places)
        loaded = b.call(whole, symbol, [addresses, alignment, _mask_operand(mask, count), loaded])
    return _to_register(b, dtype, loaded)


def store_scalar(b: FunctionBuilder, dtype: torch.dtype, pointer: Operand, value: Operand) -> None:
    b.emit(f"store {_to_memory(b, dtype, value)}, {pointer}, align {dtype.itemsize}")


def store_lanes(
    b: FunctionBuilder,
    target: Target,
    dtype: torch.dtype,
    pointer: Operand,
    step: int | Operand,
    value: Operand,
    mask: Mask | None,
) -> None:
    """Writes the lanes of `value` (in register form) that `mask` includes to pointer, pointer + step, ..."""
    count = target.lanes
    type_ = MEMORY_TYPES[dtype]
    stored = _to_memory(b, dtype, value)
    if step == 1 and mask is None:
        b.emit(f"store {stored}, {pointer}, align {dtype.itemsize}")
    elif step == 1 and mask is not None and mask.active == 1:
        # LLVM 22 turns a masked store of one narrow lane, truncated from i32, into a store of the whole i32.
        first = b.assign(type_, f"extractelement {stored}, i32 0")
        b.emit(f"store {first}, {pointer}, align {dtype.itemsize}")
    elif step == 1 and mask is not None:
        _masked_store(b, dtype, stored, pointer, mask.operand)
    elif step == -1:
        lowest = b.offset(pointer, type_, Operand("i64", str(1 - count)))
        backwards = _reverse(b, stored)
        if mask is None:
            b.emit(f"store {backwards}, {lowest}, align {dtype.itemsize}")
        else:
            _masked_store(b, dtype, backwards, lowest, _reversed_mask(b, mask))
    elif (mask is None or mask.active is not None) and not _has_gather(target, dtype):
        for lane, address in _lane_addresses(b, type_, pointer, step, mask, count):
            element = b.assign(type_, f"extractelement {stored}, i32 {lane}")
            b.emit(f"store {element}, {address}, align {dtype.itemsize}")
    else:
        addresses = _addresses(b, type_, pointer, step, count)
        symbol = f"llvm.masked.scatter.{mangle(stored.type)}.v{count}p0"
        b.declare("void", symbol, [stored.type, addresses.type, "i32", vector(count, "i1")])
        lanes_mask = _mask_operand(mask, count)
        b.emit(f"call void @{symbol}({stored}, {addresses}, i32 {dtype.itemsize}, {lanes_mask})")


def prefetch(b: FunctionBuilder, pointer: Operand, write: bool) -> None:
    """Asks for the cache line of an address, which need not be one of memory."""
    b.declare("void", "llvm.prefetch.p0", ["ptr", "i32", "i32", "i32"])
    # Kept in all caches (3), data and not code (1): LLVM Language Reference, llvm.prefetch.
    b.emit(f"call void @llvm.prefetch.p0({pointer}, i32 {int(write)}, i32 3, i32 1)")


def _has_gather(target: Target, dtype: torch.dtype) -> bool:
    """Whether gather and scatter are instructions that are worth their while."""
    return target.vector_bytes == 64 and dtype.itemsize >= 4


def _masked_load(
    b: FunctionBuilder, dtype: torch.dtype, type_: str, pointer: Operand, mask: Operand, passthru: Operand
) -> Operand:
    alignment = Operand("i32", str(dtype.itemsize))
    return b.call(type_, f"llvm.masked.load.{mangle(type_)}.p0", [pointer, alignment, mask, passthru])


def _masked_store(b: FunctionBuilder, dtype: torch.dtype, value: Operand, pointer: Operand, mask: Operand) -> None:
    symbol = f"llvm.masked.store.{mangle(value.type)}.p0"
    b.declare("void", symbol, [value.type, "ptr", "i32", mask.type])
    b.emit(f"call void @{symbol}({value}, {pointer}, i32 {dtype.itemsize}, {mask})")


def _mask_operand(mask: Mask | None, count: int) -> Operand:
    return splat(count, Operand("i1", "true")) if mask is None else mask.operand


def _addresses(b: FunctionBuilder, element: str, pointer: Operand, step: int | Operand, count: int) -> Operand:
    """A vector of addresses; with 32-bit offsets, which x86 can scale and extend by itself, where they suffice."""
    if isinstance(step, Operand):
        first = b.assign(vector(count, "i64"), f"insertelement {vector(count, 'i64')} poison, {step}, i32 0")
        steps = b.assign(first.type, f"shufflevector {first}, {first.type} poison, <{count} x i32> zeroinitializer")
        distances = b.binary("mul", lane_numbers(count, 1, "i64"), steps)
        return b.assign(vector(count, "ptr"), f"getelementptr {element}, {pointer}, {distances}", "a")
    index = "i32" if abs(step) * count < 2**31 else "i64"
    return b.assign(
        vector(count, "ptr"), f"getelementptr {element}, {pointer}, {lane_numbers(count, step, index)}", "a"
    )


def _lane_addresses(
    b: FunctionBuilder, element: str, pointer: Operand, step: int | Operand, mask: Mask | None, count: int
) -> Iterator[tuple[int, Operand]]:
    for lane in range(count if mask is None or mask.active is None else mask.active):
        distance = multiply(b, step, lane) if isinstance(step, Operand) else i64(lane * step)
        yield lane, b.offset(pointer, element, distance)


def _reverse(b: FunctionBuilder, a: Operand) -> Operand:
    count = lanes(a.type)
    order = ", ".join(f"i32 {lane}" for lane in reversed(range(count)))
    return b.assign(a.type, f"shufflevector {a}, {a.type} poison, <{count} x i32> <{order}>")


def _reversed_mask(b: FunctionBuilder, mask: Mask) -> Operand:
    if mask.active is None:
        return _reverse(b, mask.operand)
    count = lanes(mask.operand.type)
    bits = ", ".join(f"i1 {'true' if lane >= count - mask.active else 'false'}" for lane in range(count))
    return Operand(mask.operand.type, f"<{bits}>")


def _stored_literal(value: float | int | bool, dtype: torch.dtype) -> Operand:
    """A constant in memory form."""
    if dtype is torch.bfloat16:
        bits = struct.unpack("<I", struct.pack("<f", torch.tensor(value, dtype=dtype).item()))[0] >> 16
        return Operand("i16", str(bits))
    if dtype is torch.bool:
        return Operand("i8", "1" if value else "0")
    return Operand(MEMORY_TYPES[dtype], literal(value, dtype))


def _to_register(b: FunctionBuilder, dtype: torch.dtype, a: Operand) -> Operand:
    if dtype is torch.bfloat16:
        wide = b.convert("zext", a, "i32")
        return b.convert("bitcast", b.binary("shl", wide, number(wide, "16")), "float")
    if dtype is torch.bool:
        return b.compare("icmp ne", a, number(a, "0"))
    return a


def _to_memory(b: FunctionBuilder, dtype: torch.dtype, a: Operand) -> Operand:
    if dtype is torch.bfloat16:
        bits = b.convert("bitcast", a, "i32")
        return b.convert("trunc", b.binary("lshr", bits, number(bits, "16")), "i16")
    if dtype is torch.bool:
        return b.convert("zext", a, "i8")
    return a
