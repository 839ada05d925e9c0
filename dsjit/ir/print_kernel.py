"""Prints a Kernel as indented text that reads like Python: one line a statement, loops as `for`."""

from __future__ import annotations

from collections.abc import Iterator

from dsjit.ir.dtypes import short_name
from dsjit.ir.kernel import Apply, Axis, Cast, Check, Constant, IndexValue, InRange, Kernel, Load, Reduce, Stmt, Store

__all__ = ["print_kernel"]

_INDENT = "    "


def print_kernel(kernel: Kernel) -> str:
    """The text of `kernel`, with param dtypes, loops, and the user's source line at the end of each op that has one.

    kernel add(x: f32*, out: f32* write):  # lanes along i0
        for i0 in range(1024):
            v0 = x[i0]
            v1 = mul(v0, v0)  # model.py:12
            out[i0] = v1
    """
    params = ", ".join(
        f"{param.name}: {short_name(param.dtype)}*" + ("" if param.access == "read" else f" {param.access}")
        for param in kernel.params
    )
    lanes = f"  # lanes along {kernel.vector_axis}" if kernel.vector_axis else ""
    lines = [f"kernel {kernel.name}({params}):{lanes}"]
    depth = 1
    for axis in kernel.outer:
        lines.append(_INDENT * depth + _loop(axis, "parallel"))
        depth += 1
    for block in kernel.blocks:
        inner = depth
        for axis in block.axes:
            lines.append(_INDENT * inner + _loop(axis, "range"))
            inner += 1
        lines.extend(_INDENT * inner + line for line in _statements(block.body))
    return "\n".join(lines) + "\n"


def _loop(axis: Axis, iterator: str) -> str:
    return f"for {axis.name} in {iterator}({axis.size}):"


def _statements(body: tuple[Stmt, ...]) -> Iterator[str]:
    for statement in body:
        source = getattr(statement, "source", None)
        yield _statement(statement) + (f"  # {source}" if source is not None else "")


def _statement(statement: Stmt) -> str:
    match statement:
        case Load():
            masked = f" if {statement.mask} else {statement.other}" if statement.mask is not None else ""
            return f"{statement.result} = {statement.param}[{_place(statement)}]{masked}"
        case Constant():
            return f"{statement.result} = {short_name(statement.dtype)}({statement.value})"
        case IndexValue():
            return f"{statement.result} = i64({statement.index})"
        case InRange():
            return f"{statement.result} = {statement.low} <= {statement.index} < {statement.high}"
        case Apply():
            return f"{statement.result} = {statement.op}({', '.join(statement.args)})"
        case Cast():
            return f"{statement.result} = {short_name(statement.dtype)}({statement.arg})"
        case Reduce():
            at = f", at={statement.index}" if statement.index is not None else ""
            unit = f", matrix={statement.matrix!r}" if statement.matrix is not None else ""
            over = f", over=({', '.join(statement.over)})" if statement.over is not None else ""
            return f"{statement.result} = reduce_{statement.kind}({statement.arg}{at}{unit}{over})"
        case Store():
            return f"{statement.param}[{statement.index}] = {statement.arg}"
        case Check():
            return f"check({statement.condition})"


def _place(load: Load) -> str:
    gathered = [name if coefficient == 1 else f"{coefficient}*{name}" for name, coefficient in load.gathered]
    if gathered and not load.index.terms and load.index.offset == 0:
        return " + ".join(gathered)
    return " + ".join([*gathered, str(load.index)])
