"""Reductions in registers: what an accumulator starts from, takes in, and how accumulators join.

An accumulator is a list of Operands, all vectors or all scalars: the value, and for argmax and argmin also the index
at which it was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand, element, lanes
from dsjit.codegen.llvm.spellings import SPELLINGS, Spelling
from dsjit.codegen.llvm.types import REGISTER_TYPES, literal, number, splat
from dsjit.ir.dtypes import is_floating
from dsjit.ir.kernel import Reduce

__all__ = ["accumulate", "combine", "finish", "identity"]

_COMBINE: Final[dict[str, str]] = {
    "sum": "add",
    "prod": "mul",
    "max": "maximum",
    "min": "minimum",
    "any": "or",
    "all": "and",
}


def identity(reduce: Reduce, dtype: torch.dtype, count: int, index_type: str) -> list[Operand]:
    """The accumulator of no elements, in `count` lanes. dtype: of the reduced elements. index_type: `i32` or `i64`."""
    value = splat(count, Operand(REGISTER_TYPES[dtype], literal(_identity_value(reduce, dtype), dtype)))
    if reduce.index is None:
        return [value]
    return [value, splat(count, Operand(index_type, _no_index(index_type)))]


def _no_index(index_type: str) -> str:
    """Stands for "no element yet": above every index, so that it loses every tie."""
    return str(2 ** (int(index_type[1:]) - 1) - 1)


def _identity_value(reduce: Reduce, dtype: torch.dtype) -> float | int | bool:
    match reduce.kind:
        case "sum":
            return 0
        case "prod":
            return 1
        case "any":
            return False
        case "all":
            return True
        case "max" | "argmax":
            return float("-inf") if is_floating(dtype) else torch.iinfo(dtype).min
        case "min" | "argmin":
            return float("inf") if is_floating(dtype) else torch.iinfo(dtype).max


def accumulate(
    b: FunctionBuilder,
    reduce: Reduce,
    dtype: torch.dtype,
    accumulator: Sequence[Operand],
    value: Operand,
    index: Operand | None,
    mask: Operand | None,
    spellings: Mapping[str, Spelling],
    increasing: bool = False,
) -> list[Operand]:
    """The accumulator after one more element a lane, in lanes where `mask` is true. spellings: how to write the ops
    that combine. increasing: whether indices increase from call to call, so that no equal element replaces another."""
    if index is None:
        if mask is not None:
            value = b.select(mask, value, number(value, literal(_identity_value(reduce, dtype), dtype)))
        return [spellings[_COMBINE[reduce.kind]](b, dtype, [accumulator[0], value])]
    best, where = accumulator
    empty = b.compare("icmp eq", where, number(where, _no_index(element(where.type))))
    better = b.binary("or", _exceeds(b, reduce, dtype, value, best), empty)
    if not increasing:
        better = b.binary("or", better, _is_earlier(b, dtype, (value, index), (best, where)))
    if mask is not None:
        better = b.binary("and", better, mask)
    return [b.select(better, value, best), b.select(better, index, where)]


def _exceeds(b: FunctionBuilder, reduce: Reduce, dtype: torch.dtype, value: Operand, best: Operand) -> Operand:
    """Whether `value` is more extreme than `best`; a NaN is more extreme than any number."""
    direction = "gt" if reduce.kind == "argmax" else "lt"
    if not is_floating(dtype):
        sign = "u" if dtype is torch.uint8 else "s"
        return b.compare(f"icmp {sign}{direction}", value, best)
    return b.binary("and", b.compare(f"fcmp u{direction}", value, best), b.compare("fcmp ord", best, best))


def _is_earlier(
    b: FunctionBuilder, dtype: torch.dtype, x: tuple[Operand, Operand], y: tuple[Operand, Operand]
) -> Operand:
    """Whether x is as extreme as y, and has the lesser index."""
    (x_value, x_index), (y_value, y_index) = x, y
    if is_floating(dtype):
        both_nan = b.binary("and", b.compare("fcmp uno", y_value, y_value), b.compare("fcmp uno", x_value, x_value))
        tie = b.binary("or", b.compare("fcmp oeq", y_value, x_value), both_nan)
    else:
        tie = b.compare("icmp eq", y_value, x_value)
    return b.binary("and", tie, b.compare("icmp slt", x_index, y_index))


def combine(
    b: FunctionBuilder, reduce: Reduce, dtype: torch.dtype, x: Sequence[Operand], y: Sequence[Operand]
) -> list[Operand]:
    """The accumulator of the elements of both."""
    if reduce.index is None:
        return [SPELLINGS[_COMBINE[reduce.kind]](b, dtype, [x[0], y[0]])]
    (x_value, x_index), (y_value, y_index) = x, y
    earlier = _is_earlier(b, dtype, (y_value, y_index), (x_value, x_index))
    take_y = b.binary("or", _exceeds(b, reduce, dtype, y_value, x_value), earlier)
    return [b.select(take_y, y_value, x_value), b.select(take_y, y_index, x_index)]


def finish(b: FunctionBuilder, reduce: Reduce, dtype: torch.dtype, accumulator: Sequence[Operand]) -> Operand:
    """The scalar result of all lanes: halves are combined until one lane is left."""
    current = list(accumulator)
    while (count := lanes(current[0].type)) > 1:
        halves = [_halves(b, part, count // 2) for part in current]
        current = combine(b, reduce, dtype, [low for low, _ in halves], [high for _, high in halves])
    scalars = [b.assign(element(part.type), f"extractelement {part}, i32 0") for part in current]
    return result(b, reduce, scalars)


def result(b: FunctionBuilder, reduce: Reduce, accumulator: Sequence[Operand]) -> Operand:
    """What an accumulator says: its value, or its index as i64 (0 when it has seen no elements)."""
    if reduce.index is None:
        return accumulator[0]
    index = accumulator[1]
    none = b.compare("icmp eq", index, number(index, _no_index(element(index.type))))
    known = b.select(none, number(index, "0"), index)
    return known if element(known.type) == "i64" else b.convert("sext", known, "i64")


def _halves(b: FunctionBuilder, a: Operand, half: int) -> tuple[Operand, Operand]:
    type_ = f"<{half} x {element(a.type)}>"
    low, high = (
        b.assign(type_, f"shufflevector {a}, {a.type} poison, <{half} x i32> <{_order(start, half)}>")
        for start in (0, half)
    )
    return low, high


def _order(start: int, count: int) -> str:
    return ", ".join(f"i32 {lane}" for lane in range(start, start + count))
