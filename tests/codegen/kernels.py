"""Hand-written Kernels, and running them: by the interpreter, by LLVM."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from dsjit.codegen.interpreter import run_kernel
from dsjit.codegen.llvm.emitter import emit_module
from dsjit.codegen.llvm.engine import compile_module
from dsjit.codegen.llvm.schedule import Schedule
from dsjit.codegen.llvm.target import Target, host_target
from dsjit.ir.kernel import (
    Apply,
    Axis,
    Block,
    Check,
    Constant,
    Index,
    IndexValue,
    InRange,
    Kernel,
    Load,
    Param,
    Reduce,
    Size,
    SizeParam,
    Stmt,
    Store,
    has_checks,
    known,
)
from dsjit.ir.verify_kernel import verify_kernel

f32 = torch.float32
KernelFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def at(offset: int = 0, **terms: int) -> Index:
    """`at(3, i0=8, i1=1)` is the index 8*i0 + i1 + 3; zero coefficients are dropped."""
    return Index(offset, tuple((axis, coefficient) for axis, coefficient in terms.items() if coefficient))


def axes(*sizes: int, first: int = 0) -> tuple[Axis, ...]:
    """Axes i0, i1, ... of these sizes."""
    return tuple(Axis(f"i{first + number}", size) for number, size in enumerate(sizes))


def reads(*names: str, dtype: torch.dtype = f32) -> tuple[Param, ...]:
    return tuple(Param(name, dtype, "read") for name in names)


def writes(*names: str, dtype: torch.dtype = f32) -> tuple[Param, ...]:
    return tuple(Param(name, dtype, "write") for name in names)


def pointwise(size: int, body: Sequence[Stmt], params: Sequence[Param]) -> Kernel:
    """One loop over i0."""
    return Kernel("pointwise", tuple(params), (), (Block(axes(size), tuple(body)),), "i0")


def softmax(rows: int, columns: int) -> Kernel:
    here = at(i0=columns, i1=1)
    row = axes(columns, first=1)
    return Kernel(
        "softmax",
        reads("x") + writes("y"),
        axes(rows),
        (
            Block(row, (Load("a", "x", here, f32), Reduce("largest", "max", "a", f32))),
            Block(
                row,
                (
                    Load("b", "x", here, f32),
                    Apply("c", "sub", ("b", "largest"), f32),
                    Apply("d", "exp", ("c",), f32),
                    Reduce("total", "sum", "d", f32),
                ),
            ),
            Block(
                row,
                (
                    Load("e", "x", here, f32),
                    Apply("f", "sub", ("e", "largest"), f32),
                    Apply("g", "exp", ("f",), f32),
                    Apply("h", "div", ("g", "total"), f32),
                    Store("y", here, "h"),
                ),
            ),
        ),
        "i1",
    )


def layer_norm(rows: int, columns: int, eps: float = 1e-5) -> Kernel:
    """Two-pass mean and variance, weight and bias along the row; also stores the mean."""
    here = at(i0=columns, i1=1)
    row = axes(columns, first=1)
    return Kernel(
        "layer_norm",
        reads("x", "weight", "bias") + writes("y", "mean"),
        axes(rows),
        (
            Block(row, (Load("a", "x", here, f32), Reduce("sum", "sum", "a", f32))),
            Block(
                (),
                (
                    Constant("n", float(columns), f32),
                    Apply("mu", "div", ("sum", "n"), f32),
                    Store("mean", at(i0=1), "mu"),
                ),
            ),
            Block(
                row,
                (
                    Load("b", "x", here, f32),
                    Apply("c", "sub", ("b", "mu"), f32),
                    Apply("d", "mul", ("c", "c"), f32),
                    Reduce("squares", "sum", "d", f32),
                ),
            ),
            Block(
                (),
                (
                    Apply("variance", "div", ("squares", "n"), f32),
                    Constant("eps", eps, f32),
                    Apply("shifted", "add", ("variance", "eps"), f32),
                    Apply("root", "sqrt", ("shifted",), f32),
                    Constant("one", 1.0, f32),
                    Apply("scale", "div", ("one", "root"), f32),
                ),
            ),
            Block(
                row,
                (
                    Load("e", "x", here, f32),
                    Apply("f", "sub", ("e", "mu"), f32),
                    Apply("g", "mul", ("f", "scale"), f32),
                    Load("w", "weight", at(i1=1), f32),
                    Apply("h", "mul", ("g", "w"), f32),
                    Load("v", "bias", at(i1=1), f32),
                    Apply("r", "add", ("h", "v"), f32),
                    Store("y", here, "r"),
                ),
            ),
        ),
        "i1",
    )


def row_reduce(kind: str, rows: int, columns: int, dtype: torch.dtype = f32) -> Kernel:
    """One reduction of each row of x to an element of y; argmax and argmin store int64."""
    picks = kind in ("argmax", "argmin")
    result = torch.int64 if picks else dtype
    body = (
        Load("a", "x", at(i0=columns, i1=1), dtype),
        Reduce("r", kind, "a", result, at(i1=1) if picks else None),  # type: ignore[arg-type]
    )
    return Kernel(
        f"row_{kind}",
        reads("x", dtype=dtype) + writes("y", dtype=result),
        axes(rows),
        (Block(axes(columns, first=1), body), Block((), (Store("y", at(i0=1), "r"),))),
        "i1",
    )


def column_reduce(kind: str, rows: int, columns: int, dtype: torch.dtype = f32) -> Kernel:
    """One reduction of each column of a row-major x to an element of y, lanes along the columns."""
    picks = kind in ("argmax", "argmin")
    result = torch.int64 if picks else dtype
    body = (
        Load("a", "x", at(i0=1, i1=columns), dtype),
        Reduce("r", kind, "a", result, at(i1=1) if picks else None),  # type: ignore[arg-type]
    )
    return Kernel(
        f"column_{kind}",
        reads("x", dtype=dtype) + writes("y", dtype=result),
        axes(columns),
        (Block(axes(rows, first=1), body), Block((), (Store("y", at(i0=1), "r"),))),
        "i0",
    )


def place(number: str, extent: Size, prefix: str = "") -> tuple[Stmt, ...]:
    """What sees to it that `number` is one of `extent` places, which `{prefix}place` is then: as fusion does it."""
    i64, (zero, end, low, high, inside) = torch.int64, [prefix + name for name in ("zero", "end", "low", "high", "in")]
    return (
        Constant(zero, 0, i64),
        Constant(end, extent, i64),
        Apply(low, "ge", (number, zero), torch.bool),
        Apply(high, "lt", (number, end), torch.bool),
        Apply(inside, "and", (low, high), torch.bool),
        Check(inside),
        Apply(f"{prefix}place", "select", (inside, number, zero), i64),
    )


def picked_rows(rows: int, columns: int, extent: int, dtype: torch.dtype = f32) -> Kernel:
    """Rows of x, which has `extent`, by the numbers in n: lanes along the columns."""
    return Kernel(
        "picked_rows",
        (*reads("x", dtype=dtype), *reads("n", dtype=torch.int64), *writes("y", dtype=dtype)),
        axes(rows),
        (
            Block((), (Load("number", "n", at(i0=1), torch.int64), *place("number", extent))),
            Block(
                axes(columns, first=1),
                (
                    Load("a", "x", at(i1=1), dtype, gathered=(("place", columns),)),
                    Store("y", at(i0=columns, i1=1), "a"),
                ),
            ),
        ),
        "i1",
    )


def picked_along_rows(rows: int, columns: int, extent: int, dtype: torch.dtype = f32) -> Kernel:
    """Elements of each row of x, which has `extent`, by the numbers in n: lanes along what is picked."""
    here = at(i0=columns, i1=1)
    return Kernel(
        "picked_along_rows",
        (*reads("x", dtype=dtype), *reads("n", dtype=torch.int64), *writes("y", dtype=dtype)),
        axes(rows),
        (
            Block(
                axes(columns, first=1),
                (
                    Load("number", "n", here, torch.int64),
                    *place("number", extent),
                    Load("a", "x", at(i0=extent), dtype, gathered=(("place", 1),)),
                    Store("y", here, "a"),
                ),
            ),
        ),
        "i1",
    )


def picked_totals(rows: int, columns: int, extent: int) -> Kernel:
    """The sum of each row's picked elements, where a padded element counts 1: lanes along the rows."""
    here = at(i0=1, i1=rows)
    return Kernel(
        "picked_totals",
        (*reads("x"), *reads("n", dtype=torch.int64), *writes("y")),
        axes(rows),
        (
            Block(
                axes(columns, first=1),
                (
                    Load("number", "n", here, torch.int64),
                    *place("number", extent),
                    InRange("real", at(i1=1), 1, columns),
                    Load("a", "x", at(i0=extent), f32, mask="real", other=1.0, gathered=(("place", 1),)),
                    Reduce("total", "sum", "a", f32),
                ),
            ),
            Block((), (Store("y", at(i0=1), "total"),)),
        ),
        "i0",
    )


def generic(kernel: Kernel, expected: int) -> tuple[Kernel, dict[str, int]]:
    """The Kernel with parameters in place of its extents, offsets, coefficients and bounds (but 1), and their values.

    expected: what the parameters are said to be typically.
    """
    params: dict[int, SizeParam] = {}

    def size(value: Size) -> Size:
        value = known(value)
        return value if value == 1 else params.setdefault(value, SizeParam(f"n{len(params)}", expected))

    def index(form: Index) -> Index:
        return Index(size(form.offset), tuple((axis, size(coefficient)) for axis, coefficient in form.terms))

    def statement(stmt: Stmt) -> Stmt:
        match stmt:
            case InRange():
                return replace(stmt, index=index(stmt.index), low=size(stmt.low), high=size(stmt.high))
            case Load():
                gathered = tuple((name, size(coefficient)) for name, coefficient in stmt.gathered)
                return replace(stmt, index=index(stmt.index), gathered=gathered)
            case Store() | IndexValue() | Reduce():
                return stmt if stmt.index is None else replace(stmt, index=index(stmt.index))
            case _:
                return stmt

    def nest(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(Axis(axis.name, size(axis.size)) for axis in axes)

    blocks = tuple(Block(nest(block.axes), tuple(map(statement, block.body))) for block in kernel.blocks)
    made = replace(kernel, outer=nest(kernel.outer), blocks=blocks)
    made = replace(made, sizes=tuple(params.values()))
    return made, {param.name: value for value, param in params.items()}


def run_interpreted(kernel: Kernel, *buffers: torch.Tensor, sizes: Mapping[str, int] | None = None) -> None:
    """Buffers in the order of the params."""
    verify_kernel(kernel)
    by_name = {param.name: buffer.view(-1) for param, buffer in zip(kernel.params, buffers, strict=True)}
    run_kernel(kernel, by_name, sizes=sizes)


def run_compiled(
    kernel: Kernel,
    *buffers: torch.Tensor,
    target: Target | None = None,
    pieces: int = 1,
    fast: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Buffers in the order of the params. pieces: into how many calls the work items are split. Raises IndexError."""
    verify_kernel(kernel)
    target = target or host_target()
    module = compile_module(emit_module([kernel], target, fast), target)
    function = KernelFunction(module.address(kernel.name))
    flag = torch.zeros((), dtype=torch.int64)
    words = [buffer.data_ptr() for buffer in (*buffers, *([flag] if has_checks(kernel) else []))]
    words += [(sizes or {})[size.name] for size in kernel.sizes]
    args = (ctypes.c_int64 * max(len(words), 1))(*words)
    items = Schedule.of(kernel, target).work(target.lanes).item_count(sizes or {})
    for piece in range(pieces):
        function(ctypes.addressof(args), items * piece // pieces, items * (piece + 1) // pieces)
    if flag.item():
        raise IndexError("an index is out of range")


def outputs(
    kernel: Kernel, inputs: Sequence[torch.Tensor], results: Sequence[torch.Tensor], **options: object
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the interpreter and what LLVM leave in copies of `results` (and of `inputs`, which must not change)."""
    expected = [tensor.clone() for tensor in results]
    actual = [tensor.clone() for tensor in results]
    run_interpreted(kernel, *inputs, *expected)
    run_compiled(kernel, *inputs, *actual, **options)  # type: ignore[arg-type]
    return expected, actual
