"""Loops in textual LLVM IR, and the little integer arithmetic that steers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand

__all__ = ["add", "counted_loop", "i64", "minimum", "multiply", "static", "subtract"]


def i64(value: int) -> Operand:
    return Operand("i64", str(value))


def static(a: Operand) -> int | None:
    """The value of an i64 that is a constant."""
    return None if a.text.startswith("%") else int(a.text)


def add(b: FunctionBuilder, x: Operand, y: Operand) -> Operand:
    """x + y in i64, folded where constant."""
    known_x, known_y = static(x), static(y)
    if known_x is not None and known_y is not None:
        return i64(known_x + known_y)
    if known_x == 0:
        return y
    return x if known_y == 0 else b.binary("add", x, y)


def subtract(b: FunctionBuilder, x: Operand, y: Operand) -> Operand:
    """x - y in i64, folded where constant."""
    known_x, known_y = static(x), static(y)
    if known_x is not None and known_y is not None:
        return i64(known_x - known_y)
    return x if known_y == 0 else b.binary("sub", x, y)


def multiply(b: FunctionBuilder, x: Operand, factor: int | Operand) -> Operand:
    """x * factor in i64, folded where constant."""
    if isinstance(factor, Operand):
        known_factor = static(factor)
        if known_factor is None:
            return multiply(b, factor, static(x) or 0) if static(x) is not None else b.binary("mul", x, factor)
        factor = known_factor
    known = static(x)
    if known is not None:
        return i64(known * factor)
    if factor == 0:
        return i64(0)
    return x if factor == 1 else b.binary("mul", x, i64(factor))


def minimum(b: FunctionBuilder, x: Operand, y: Operand) -> Operand:
    """The smaller of two i64, folded where constant."""
    known_x, known_y = static(x), static(y)
    if known_x is not None and known_y is not None:
        return i64(min(known_x, known_y))
    return b.select(b.compare("icmp slt", x, y), x, y)


def counted_loop(
    b: FunctionBuilder,
    start: Operand,
    stop: Operand,
    step: int,
    carried: Sequence[Operand],
    body: Callable[[Operand, list[Operand]], list[Operand]],
    may_be_empty: bool = True,
) -> list[Operand]:
    """`for i in range(start, stop, step): carried = body(i, carried)`; returns the last `carried`.

    No loop is written where the bounds are constant and give no iteration or one. `may_be_empty`: False when the
    caller knows that there is an iteration.
    """
    first, last = static(start), static(stop)
    if first is not None and last is not None:
        if first >= last:
            return list(carried)
        if first + step >= last:
            return body(start, list(carried))
        may_be_empty = False
    before, loop, after = b.block, b.fresh_label("loop"), b.fresh_label("after")
    if may_be_empty:
        b.branch(b.compare("icmp slt", start, stop), loop, after)
    else:
        b.jump(loop)
    b.label(loop)
    counter, following = Operand("i64", b.fresh("i")), Operand("i64", b.fresh("i"))
    phis = [Operand(value.type, b.fresh("c")) for value in carried]
    reserved = [b.reserve() for _ in range(len(phis) + 1)]
    results = body(counter, phis)
    b.emit(f"{following.text} = add {counter}, {step}")
    again = b.compare("icmp slt", following, stop)
    latch = b.block
    b.branch(again, loop, after)
    for line, phi, value, result in zip(
        reserved, [counter, *phis], [start, *carried], [following, *results], strict=True
    ):
        b.fill(line, f"{phi.text} = phi {phi.type} [ {value.text}, %{before} ], [ {result.text}, %{latch} ]")
    b.label(after)
    if not may_be_empty:
        return results
    return [
        b.assign(value.type, f"phi {value.type} [ {value.text}, %{before} ], [ {result.text}, %{latch} ]")
        for value, result in zip(carried, results, strict=True)
    ]
