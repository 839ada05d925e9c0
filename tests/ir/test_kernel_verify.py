"""Each rule of the Kernel IR, broken once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dsjit.errors import VerificationError
from dsjit.ir.kernel import (
    Apply,
    Axis,
    Block,
    Cast,
    Check,
    Constant,
    Index,
    IndexValue,
    InRange,
    Kernel,
    Load,
    Param,
    Reduce,
    Stmt,
    Store,
)
from dsjit.ir.verify_kernel import verify_kernel

f32, f64, i64, bf16, boolean = torch.float32, torch.float64, torch.int64, torch.bfloat16, torch.bool
PARAMS = (Param("x", f32, "read"), Param("y", f32, "write"), Param("h", bf16, "readwrite"))
HERE = Index(0, (("i", 1),))
ROW = Index(0, (("o", 8), ("i", 1)))


def of_body(*body: Stmt) -> Kernel:
    return Kernel("k", PARAMS, (), (Block((Axis("i", 8),), body),), "i")


def row_kernel(*blocks: Block, vector_axis: str | None = "i") -> Kernel:
    return Kernel("k", PARAMS, (Axis("o", 4),), blocks, vector_axis)


LOAD = Load("a", "x", HERE, f32)
LEGAL = of_body(LOAD, Apply("b", "add", ("a", "a"), f32), Store("y", HERE, "b"))


def test_a_legal_kernel_passes():
    verify_kernel(LEGAL)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([LOAD, LOAD], "defined twice"),
        ([Apply("b", "neg", ("a",), f32)], "not visible"),
        ([Load("a", "z", HERE, f32)], "no param z"),
        ([Load("a", "y", HERE, f32)], "for write only"),
        ([LOAD, Store("x", HERE, "a")], "for read only"),
        ([Load("a", "x", HERE, f64)], "loads torch.float64"),
        ([Load("a", "x", Index(0, (("j", 1),)), f32)], "axis j is not in scope"),
        ([Load("a", "x", Index(0, (("i", 0),)), f32)], "coefficient 0"),
        ([Load("a", "x", Index(0, (("i", 1), ("i", 2))), f32)], "twice in an index"),
        ([IndexValue("m", HERE), Load("a", "x", HERE, f32, mask="m")], "mask is not bool"),
        ([LOAD, Load("b", "x", HERE, f32, gathered=(("a", 1),))], "a is no i64"),
        ([IndexValue("n", HERE), Load("b", "x", HERE, f32, gathered=(("n", 0),))], "n has coefficient 0"),
        ([Load("b", "x", HERE, f32, gathered=(("n", 1),))], "n is not visible"),
        ([LOAD, Check("a")], "condition is not bool"),
        ([Constant("c", 1, bf16)], "no constants of torch.bfloat16"),
        ([LOAD, Apply("b", "frobnicate", ("a",), f32)], "no scalar op"),
        ([LOAD, Apply("b", "add", ("a",), f32)], "takes 2 operands"),
        ([LOAD, Reduce("r", "max", "a", f32, over=())], "max combines all axes"),
        ([LOAD, Reduce("r", "sum", "a", f32, over=("i",))], "not some of the block's"),
        ([LOAD, Reduce("r", "sum", "a", f32, over=("j",))], "not some of the block's"),
        ([LOAD, Cast("d", "a", f64), Apply("b", "add", ("a", "d"), f32)], "several dtypes"),
        ([Load("a", "h", HERE, bf16), Apply("b", "add", ("a", "a"), bf16)], "does not take torch.bfloat16"),
        ([LOAD, Apply("b", "and", ("a", "a"), f32)], "does not take torch.float32"),
        ([LOAD, Apply("b", "add", ("a", "a"), f64)], "the result is torch.float32"),
        ([LOAD, Apply("b", "eq", ("a", "a"), f32)], "the result is torch.bool"),
        ([LOAD, Apply("b", "select", ("a", "a", "a"), f32)], "condition is not bool"),
        ([LOAD, Cast("b", "a", torch.complex64)], "kernels cannot hold"),
        ([LOAD, Cast("b", "a", f64), Store("y", HERE, "b")], "stores torch.float64"),
        ([LOAD, Reduce("r", "sum", "a", f64)], "the result is torch.float32"),
        ([LOAD, Reduce("r", "any", "a", f32)], "any does not take"),
        ([InRange("m", HERE, 0, 4), Reduce("r", "max", "m", boolean)], "max does not take"),
        ([LOAD, Reduce("r", "argmax", "a", i64)], "needs index"),
        ([LOAD, Reduce("r", "sum", "a", f32, HERE)], "takes no index"),
        ([LOAD, Reduce("r", "sum", "a", f32), Store("y", HERE, "r")], "r is not visible"),
    ],
)
def test_a_bad_body_is_reported(body, message):
    with pytest.raises(VerificationError, match=message):
        verify_kernel(of_body(*body))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (replace(LEGAL, params=(*PARAMS, PARAMS[0])), "declared twice"),
        (replace(LEGAL, params=(*PARAMS, Param("c", torch.complex64, "read"))), "kernels cannot hold"),
        (replace(LEGAL, outer=(Axis("i", 2),)), "axis i is declared twice"),
        (replace(LEGAL, outer=(Axis("o", -1),)), "size -1"),
        (replace(LEGAL, vector_axis=None), "vector_axis is None"),
        (replace(LEGAL, vector_axis="j"), "vector_axis j"),
        (replace(LEGAL, outer=(Axis("o", 2), Axis("p", 2)), vector_axis="o"), "not the last one"),
    ],
)
def test_a_bad_shape_of_the_nest_is_reported(kernel, message):
    with pytest.raises(VerificationError, match=message):
        verify_kernel(kernel)


def test_results_of_loops_end_with_their_block():
    loop = Block((Axis("i", 8),), (Load("a", "x", ROW, f32),))
    with pytest.raises(VerificationError, match="a is not visible"):
        verify_kernel(row_kernel(loop, Block((), (Store("y", Index(0, (("o", 1),)), "a"),))))


def test_reductions_and_results_outside_of_loops_are_visible_later():
    loop = Block((Axis("i", 8),), (Load("a", "x", ROW, f32), Reduce("r", "sum", "a", f32)))
    once = Block((), (Apply("n", "neg", ("r",), f32),))
    again = Block((Axis("i", 8),), (Apply("b", "add", ("r", "n"), f32), Store("y", ROW, "b")))
    verify_kernel(row_kernel(loop, once, again))


def test_kept_rows_are_visible_where_their_axes_are_looped_over():
    loop = (Axis("i", 8),)
    keep = Block(loop, (Load("a", "x", ROW, f32), Reduce("r", "sum", "a", f32, over=())))
    verify_kernel(row_kernel(keep, Block(loop, (Store("y", ROW, "r"),))))
    with pytest.raises(VerificationError, match="r is not visible"):
        verify_kernel(row_kernel(keep, Block((), (Store("y", Index(0, (("o", 1),)), "r"),))))


def test_float8_is_loaded_converted_and_stored_and_nothing_else():
    f8 = torch.float8_e4m3fn
    params = (Param("x", f8, "read"), Param("y", f8, "write"))
    body = (Load("a", "x", HERE, f8), Cast("b", "a", f32), Cast("c", "b", f8), Store("y", HERE, "c"))
    verify_kernel(Kernel("k", params, (), (Block((Axis("i", 8),), body),), "i"))
    negated = (body[0], Apply("d", "neg", ("a",), f8), Store("y", HERE, "d"))
    with pytest.raises(VerificationError):
        verify_kernel(Kernel("k", params, (), (Block((Axis("i", 8),), negated),), "i"))
