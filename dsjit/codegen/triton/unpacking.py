"""What makes an operand of a product from packed numbers: which statements a tile computes once for several elements.

A word of packed numbers, a scale or a zero belongs to several elements along the sum. Where axes of the sum tell so, it
is loaded, and whatever else depends on the same axes alone is computed, for a coarser tile that has a place for each
word or group; at the first statement that needs each element, the values are repeated in registers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from dsjit.codegen.nest import statement_index
from dsjit.codegen.operands import operand_statements
from dsjit.ir.kernel import Apply, Axis, Check, Index, InRange, Load, Stmt, Store, known, names_read

__all__ = ["Placed", "common_step", "depth_strides", "placed", "without_masks"]

_MOST_POINTS: Final = 256
"""Of an axis that masks tell apart, for each of them to be looked at."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A statement, and how many elements along the sum in a row share its result: a power of 2, or None for all."""

    statement: Stmt
    shared: int | None


def depth_strides(depth: Sequence[Axis]) -> dict[str, int]:
    """How many elements along the sum one step of each of its axes is."""
    found: dict[str, int] = {}
    stride = 1
    for axis in reversed(depth):
        found[axis.name] = stride
        stride *= known(axis.size)
    return found


def placed(statements: Iterable[Stmt], strides: Mapping[str, int]) -> list[Placed]:
    """strides: of the axes of the sum. Those that are no powers of 2 share as many elements as the next lower one."""
    powers = sorted({stride for stride in strides.values() if stride & (stride - 1) == 0} | {1})
    shared: dict[str, int | None] = {}
    found: list[Placed] = []
    for statement in statements:
        index = statement_index(statement)
        own = [strides[axis] for axis, _ in index.terms if axis in strides] if index is not None else []
        least = [max(power for power in powers if power <= stride) for stride in own]
        least += [each for name in names_read(statement) if (each := shared[name]) is not None]
        level = min(least, default=None)
        if not isinstance(statement, Store | Check):
            shared[statement.result] = level
        found.append(Placed(statement, level))
    return found


def without_masks(statements: Sequence[Stmt], result: str, axes: Mapping[str, Axis]) -> tuple[Stmt, ...]:
    """`statements` that make `result`, without the masks of loads that matter nowhere: what is loaded does not depend
    on the axis of the mask, and a choice by the same axis takes something else where it is masked.

    Before:
        m0 = 0 <= k < 1
        x1 = t0[i] if m0 else 0
        m2 = 1 <= k < 2
        x3 = t0[i] if m2 else 0
        v4 = select(m0, x1, x3)      # k runs from 0 to 1
    After:
        x1 = t0[i]
        x3 = t0[i]
        m0 = 0 <= k < 1
        v4 = select(m0, x1, x3)
    """
    made = {statement.result: statement for statement in statements if not isinstance(statement, Store | Check)}
    for load in [each for each in made.values() if isinstance(each, Load) and each.mask is not None]:
        assert load.mask is not None
        inside = _points(made.get(load.mask), axes)
        if inside is None or not inside[1] or any(axis == inside[0] for axis, _ in load.index.terms):
            continue
        if _observed(made, result, inside[0], axes).get(load.result, frozenset()) <= inside[1]:
            made[load.result] = replace(load, mask=None, other=0)
    return tuple(operand_statements(result, made).values())


def _points(mask: Stmt | None, axes: Mapping[str, Axis]) -> tuple[str, frozenset[int]] | None:
    """The one axis that a mask depends on, and where on it the mask is true."""
    if not isinstance(mask, InRange) or len(mask.index.terms) != 1:
        return None
    ((name, step),) = mask.index.terms
    if name not in axes or known(axes[name].size) > _MOST_POINTS:
        return None
    low, high, offset = known(mask.low), known(mask.high), known(mask.index.offset)
    return name, frozenset({p for p in range(known(axes[name].size)) if low <= offset + known(step) * p < high})


def _observed(made: Mapping[str, Stmt], result: str, axis: str, axes: Mapping[str, Axis]) -> dict[str, frozenset[int]]:
    """By name, at which points of the axis `result` depends on it."""
    found = {result: frozenset(range(known(axes[axis].size)))}
    for name, statement in reversed(list(made.items())):
        points = found.get(name, frozenset())
        reads = [(each, points) for each in names_read(statement)]
        if isinstance(statement, Apply) and statement.op == "select":
            chosen = _points(made.get(statement.args[0]), axes)
            if chosen is not None and chosen[0] == axis:
                places = (points, points & chosen[1], points - chosen[1])
                reads = list(zip(statement.args, places, strict=True))
        for each, where in reads:
            found[each] = found.get(each, frozenset()) | where
    return found


def common_step(index: Index, shared: int, strides: Mapping[str, int]) -> int | None:
    """The step of the index from one place of a tile to the next, where each place is for `shared` elements; None where
    it is not the same from axis to axis."""
    steps = {known(index.coefficient(axis)) * shared / stride for axis, stride in strides.items() if stride >= shared}
    step = steps.pop()
    return int(step) if not steps and step == int(step) else None
