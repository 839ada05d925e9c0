"""Each kind of reduction in Triton: how elements are prepared, combined, and finished along a dimension of a tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dsjit.codegen.triton.spellings import Use
from dsjit.codegen.triton.types import TRITON_TYPES
from dsjit.ir.dtypes import is_floating
from dsjit.ir.kernel import ReduceKind

__all__ = ["Accumulator", "Part", "Reduction", "reduction_of"]


@dataclass(frozen=True, slots=True)
class Part:
    """One of the values that are combined: of what type, and what changes nothing when it is combined."""

    suffix: str
    start: str
    type: str


@dataclass(frozen=True, slots=True)
class Accumulator:
    """A variable of a loop, and what it holds before."""

    name: str
    start: str


@dataclass(frozen=True, slots=True)
class Reduction:
    """parts: what is combined; a second part is the place of the first.

    prepare: from the name of the operand to the element. combine: from accumulators and elements to the new values of
    the accumulators. finish: from tiles to the result along an axis, which it keeps.
    """

    parts: tuple[Part, ...]
    prepare: Callable[[str], str]
    combine: Callable[[Sequence[str], Sequence[str], Use], str]
    finish: Callable[[Sequence[str], int, Use], str]
    accumulators: tuple[Accumulator, ...] = ()


def reduction_of(kind: ReduceKind, dtype: torch.dtype, wide: bool) -> Reduction:
    """dtype: of the operand. wide: whether places take 64 bits."""
    type_ = TRITON_TYPES[dtype]
    match kind:
        case "sum":
            return Reduction((Part("sum", _zero(dtype), type_),), _same, _infix("+"), _along_axis("total"))
        case "prod":
            one = "1.0" if is_floating(dtype) else "1"
            return Reduction((Part("product", one, type_),), _same, _infix("*"), _along_axis("product"))
        case "max" | "min":
            return _extreme(kind, dtype)
        case "any":
            return Reduction((Part("any", "0", "tl.int32"),), _as_int, _infix("|"), _truth("maximum"))
        case "all":
            return Reduction((Part("all", "1", "tl.int32"),), _as_int, _infix("&"), _truth("minimum"))
        case "argmax" | "argmin":
            helper = "first_largest" if kind == "argmax" else "first_smallest"
            nowhere = str(torch.iinfo(torch.int64 if wide else torch.int32).max)
            parts = (
                Part("best", _least(kind == "argmax", dtype), type_),
                Part("at", nowhere, "tl.int64" if wide else "tl.int32"),
            )
            return Reduction(parts, _same, _paired(helper), _place(helper, nowhere))


def _same(arg: str) -> str:
    return arg


def _as_int(arg: str) -> str:
    return f"{arg}.to(tl.int32)"


def _zero(dtype: torch.dtype) -> str:
    return "0.0" if is_floating(dtype) else "0"


def _least(largest: bool, dtype: torch.dtype) -> str:
    """What every other number is more extreme than."""
    if is_floating(dtype):
        return f'float("{"-" if largest else ""}inf")'
    limits = torch.iinfo(dtype)
    return str(limits.min if largest else limits.max)


def _extreme(kind: ReduceKind, dtype: torch.dtype) -> Reduction:
    part = Part(kind, _least(kind == "max", dtype), TRITON_TYPES[dtype])
    helper = "maximum" if kind == "max" else "minimum"
    return Reduction((part,), _same, lambda held, new, use: f"{use(helper)}({held[0]}, {new[0]})", _along_axis(helper))


def _infix(symbol: str) -> Callable[[Sequence[str], Sequence[str], Use], str]:
    return lambda held, new, use: f"{held[0]} {symbol} {new[0]}"


def _along_axis(helper: str) -> Callable[[Sequence[str], int, Use], str]:
    return lambda tiles, axis, use: f"tl.reduce({tiles[0]}, {axis}, {use(helper)}, keep_dims=True)"


def _truth(helper: str) -> Callable[[Sequence[str], int, Use], str]:
    return lambda tiles, axis, use: f"{_along_axis(helper)(tiles, axis, use)} != 0"


def _paired(helper: str) -> Callable[[Sequence[str], Sequence[str], Use], str]:
    return lambda held, new, use: f"{use(helper)}({held[0]}, {held[1]}, {new[0]}, {new[1]})"


def _place(helper: str, nowhere: str) -> Callable[[Sequence[str], int, Use], str]:
    def finish(tiles: Sequence[str], axis: int, use: Use) -> str:
        best = f"tl.reduce(({tiles[0]}, {tiles[1]}), {axis}, {use(helper)}, keep_dims=True)"
        return f"{use('found_at')}({best}, {nowhere})"

    return finish
