"""Calls that take exactly one vector register, made on operands of any number of lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand, element, lanes

__all__ = ["by_register"]


def by_register(
    builder: FunctionBuilder,
    args: Sequence[Operand],
    widths: Sequence[int],
    call: Callable[[list[Operand]], Operand],
) -> Operand:
    """`call` applied to the operands, cut into (or padded to) vectors of one of `widths` lanes.

    The width is the smallest that holds all lanes, or else the largest. Padding repeats the last lane, so that
    no call sees a number which the program did not have. `call` returns as many lanes as it is given.
    """
    count = lanes(args[0].type)
    width = min((w for w in widths if w >= count), default=max(widths))
    vectors = [_as_vector(builder, arg) for arg in args]
    if width == count:
        return call(vectors)
    parts = [call([_slice(builder, vector, start, width) for vector in vectors]) for start in range(0, count, width)]
    if not args[0].type.startswith("<"):
        return builder.assign(element(parts[0].type), f"extractelement {parts[0]}, i32 0")
    joined = parts[0]
    for part in parts[1:]:
        joined = _concatenate(builder, joined, part)
    return joined if lanes(joined.type) == count else _slice(builder, joined, 0, count)


def _as_vector(builder: FunctionBuilder, operand: Operand) -> Operand:
    if operand.type.startswith("<"):
        return operand
    return builder.assign(f"<1 x {operand.type}>", f"insertelement <1 x {operand.type}> poison, {operand}, i32 0")


def _slice(builder: FunctionBuilder, vector: Operand, start: int, width: int) -> Operand:
    last = lanes(vector.type) - 1
    return _shuffle(builder, vector, vector, [min(start + lane, last) for lane in range(width)])


def _concatenate(builder: FunctionBuilder, a: Operand, b: Operand) -> Operand:
    """The lanes of `a`, then those of `b`, which has at most as many."""
    count, extra = lanes(a.type), lanes(b.type)
    if extra < count:
        b = _slice(builder, b, 0, count)
    return _shuffle(builder, a, b, list(range(count + extra)))


def _shuffle(builder: FunctionBuilder, a: Operand, b: Operand, mask: list[int]) -> Operand:
    indices = ", ".join(f"i32 {index}" for index in mask)
    return builder.assign(
        f"<{len(mask)} x {element(a.type)}>", f"shufflevector {a}, {b}, <{len(mask)} x i32> <{indices}>"
    )
