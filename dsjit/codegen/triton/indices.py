"""Affine forms as expressions over the variables of tiles, and what is known of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsjit.ir.kernel import Axis, Index, InRange, Size, SizeParam

__all__ = ["AxisVariable", "implied_bounds", "index_text", "size_text"]


@dataclass(frozen=True, slots=True)
class AxisVariable:
    """name: of the variable that holds the axis. tile: the name of the tile that it is part of; "" when each program
    has one value of it."""

    axis: Axis
    name: str
    tile: str


def size_text(size: Size, names: Mapping[str, str]) -> str:
    """names: of the sizes that are parameters, as the source calls them."""
    return names[size.name] if isinstance(size, SizeParam) else str(size)


def index_text(index: Index, axes: Mapping[str, AxisVariable], names: Mapping[str, str]) -> str:
    """The form as a sum that can stand in parentheses."""
    text = ""
    for axis, coefficient in index.terms:
        variable = axes[axis].name
        if isinstance(coefficient, SizeParam):
            text += f" + {variable} * {names[coefficient.name]}"
        else:
            sign = "-" if coefficient < 0 else "+"
            scale = abs(coefficient)
            text += f" {sign} {variable}" if scale == 1 else f" {sign} {variable} * {scale}"
    offset = index.offset
    if isinstance(offset, SizeParam):
        text += f" + {names[offset.name]}"
    elif offset or not text:
        text += f" {'-' if offset < 0 else '+'} {abs(offset)}"
    if text.startswith(" + "):
        return text[3:]
    return f"-{text[3:]}" if text.startswith(" - ") else text


def implied_bounds(statement: InRange, axes: Mapping[str, AxisVariable]) -> tuple[bool, bool]:
    """Whether `low <= index` and `index < high` hold at every point of the axes."""
    index = statement.index
    low = high = index.offset
    if isinstance(low, SizeParam) or isinstance(high, SizeParam):
        return False, False
    for axis, coefficient in index.terms:
        size = axes[axis].axis.size
        if isinstance(size, SizeParam) or isinstance(coefficient, SizeParam):
            return False, False
        reach = coefficient * (size - 1)
        low, high = low + min(reach, 0), high + max(reach, 0)
    above = not isinstance(statement.low, SizeParam) and statement.low <= low
    below = not isinstance(statement.high, SizeParam) and high < statement.high
    return above, below
