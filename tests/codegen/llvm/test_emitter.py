"""Emitted kernels against the interpreter: every shape of loop nest, memory access and dtype."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch

from dsjit.codegen.llvm.emitter import emit_module
from dsjit.codegen.llvm.engine import assembly
from dsjit.codegen.llvm.schedule import work_items
from dsjit.codegen.llvm.target import AARCH64_NEON, X86_64_AVX2, X86_64_AVX512, X86_64_SSE2, Target, host_target
from dsjit.ir.kernel import Apply, Axis, Block, Cast, Constant, IndexValue, InRange, Kernel, Load, Param, Reduce, Store
from tests.codegen.kernels import (
    at,
    axes,
    column_reduce,
    layer_norm,
    outputs,
    pointwise,
    reads,
    row_reduce,
    run_compiled,
    softmax,
    writes,
)

f32, bf16, f16, i64, boolean = torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool
SIZES = (1, 3, 16, 17, 100)


def assert_equal(kernel, inputs, results, **options):
    for expected, actual in zip(*outputs(kernel, inputs, results, **options), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def assert_close(kernel, inputs, results, **options):
    for expected, actual in zip(*outputs(kernel, inputs, results, **options), strict=True):
        torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6)


def runnable_targets() -> list[Target]:
    """The targets whose code this machine can run."""
    host = host_target()
    if not host.is_x86:
        return [host]
    narrower = [t for t in (X86_64_SSE2, X86_64_AVX2, X86_64_AVX512) if t.vector_bytes <= host.vector_bytes]
    return [host, *narrower]


@pytest.mark.parametrize("size", [*SIZES, 1023, 1024, 1025, 5000])
def test_pointwise_of_any_size(size):
    body = (
        Load("a", "x", at(i0=1), f32),
        Load("b", "y", at(i0=1), f32),
        Apply("c", "sub", ("a", "b"), f32),
        Store("z", at(i0=1), "c"),
        Apply("d", "mul", ("a", "c"), f32),
        Store("w", at(i0=1), "d"),
    )
    kernel = pointwise(size, body, reads("x", "y") + writes("z", "w"))
    assert_equal(kernel, [torch.randn(size), torch.randn(size)], [torch.zeros(size), torch.zeros(size)], pieces=3)


def test_stores_stay_inside_of_their_buffer():
    kernel = pointwise(21, (Constant("c", 7.0, f32), Store("y", at(i0=1), "c")), writes("y"))
    y = torch.zeros(64)
    run_compiled(kernel, y)
    assert y.tolist() == [7.0] * 21 + [0.0] * 43


@pytest.mark.parametrize(("rows", "columns"), [*itertools.product((1, 5), SIZES)])
def test_broadcasting_along_either_axis(rows, columns):
    body = (
        Load("a", "x", at(i0=columns, i1=1), f32),
        Load("b", "row", at(i1=1), f32),
        Load("c", "column", at(i0=1), f32),
        Load("d", "scalar", at(), f32),
        Apply("e", "add", ("a", "b"), f32),
        Apply("f", "mul", ("e", "c"), f32),
        Apply("g", "maximum", ("f", "d"), f32),
        Store("y", at(i0=columns, i1=1), "g"),
    )
    params = reads("x", "row", "column", "scalar") + writes("y")
    kernel = Kernel("broadcast", params, (), (Block(axes(rows, columns), body),), "i1")
    inputs = [torch.randn(rows, columns), torch.randn(columns), torch.randn(rows), torch.randn(1)]
    assert_equal(kernel, inputs, [torch.zeros(rows, columns)], pieces=2)


@pytest.mark.parametrize("dtype", [f32, torch.float64, bf16, f16, i64, torch.int32, torch.int16, torch.uint8, boolean])
@pytest.mark.parametrize("strides", [(1, 23), (3, 60), (-1, 23), (-2, 46)], ids=str)
def test_strided_and_reversed_loads_and_stores(dtype, strides):
    step, row = strides
    offset = 0 if step > 0 else -step * 19
    body = (Load("a", "x", at(offset, i0=row, i1=step), dtype), Store("y", at(offset, i0=row, i1=step), "a"))
    kernel = Kernel(
        "strided", reads("x", dtype=dtype) + writes("y", dtype=dtype), (), (Block(axes(2, 20), body),), "i1"
    )
    x = torch.randint(0, 2, (128,)).to(dtype)
    assert_equal(kernel, [x], [torch.zeros(128, dtype=dtype)])


@pytest.mark.parametrize("shape", [(17, 33), (3, 5), (64, 16)], ids=str)
def test_transposition(shape):
    rows, columns = shape
    body = (Load("a", "x", at(i0=1, i1=rows), f32), Store("y", at(i0=columns, i1=1), "a"))
    kernel = Kernel("transpose", reads("x") + writes("y"), (), (Block(axes(rows, columns), body),), "i1")
    x, y = torch.randn(columns, rows), torch.zeros(rows, columns)
    assert_equal(kernel, [x], [y])
    run_compiled(kernel, x, y)
    assert torch.equal(y, x.t())


@pytest.mark.parametrize("dtype", [f32, bf16, torch.uint8], ids=str)
@pytest.mark.parametrize("size", [8, 40])
def test_masked_loads_do_not_touch_what_is_masked(dtype, size):
    """x has only the elements that the mask allows: its neighbours are poisoned, and far away ones are not mapped."""
    body = (
        InRange("inside", at(-3, i0=1), 0, size - 5),
        Load("a", "x", at(-3, i0=1), dtype, mask="inside", other=1),
        InRange("never", at(i0=1), size, size + 5),
        Load("b", "far", at(1 << 50, i0=1), dtype, mask="never", other=0),
        Store("y", at(i0=1), "a"),
        Store("z", at(i0=1), "b"),
    )
    params = reads("x", "far", dtype=dtype) + writes("y", "z", dtype=dtype)
    x = torch.arange(2, size - 3).to(dtype)
    results = [torch.zeros(size, dtype=dtype), torch.ones(size, dtype=dtype)]
    assert_equal(pointwise(size, body, params), [x, x], results)


def test_masked_strided_and_scalar_loads():
    body = (
        InRange("some", at(i1=1), 5, 22),
        Load("a", "x", at(i1=2), f32, mask="some", other=-1.0),
        InRange("row", at(i0=1), 1, 2),
        Load("b", "x", at(i0=100), f32, mask="row", other=-2.0),
        Load("c", "x", at(i0=1), f32, mask="some", other=-3.0),
        Apply("d", "add", ("a", "b"), f32),
        Apply("e", "add", ("d", "c"), f32),
        Store("y", at(i0=30, i1=1), "e"),
    )
    kernel = Kernel("masked", reads("x") + writes("y"), (), (Block(axes(3, 30), body),), "i1")
    assert_equal(kernel, [torch.randn(101)], [torch.zeros(90)])


def test_a_readwrite_buffer_is_updated_in_place():
    body = (Load("a", "x", at(i0=1), f32), Apply("b", "add", ("a", "a"), f32), Store("x", at(i0=1), "b"))
    kernel = pointwise(37, body, [Param("x", f32, "readwrite")])
    assert_equal(kernel, [], [torch.randn(37)])


def test_index_values_and_ranges():
    body = (
        IndexValue("i", at(5, i0=-3, i1=7)),
        InRange("r", at(i0=10, i1=-1), -4, 6),
        Cast("j", "i", f32),
        Store("y", at(i0=19, i1=1), "i"),
        Store("z", at(i0=19, i1=1), "r"),
        Store("w", at(i0=19, i1=1), "j"),
    )
    params = writes("y", dtype=i64) + writes("z", dtype=boolean) + writes("w")
    kernel = Kernel("iota", params, (), (Block(axes(2, 19), body),), "i1")
    assert_equal(kernel, [], [torch.zeros(38, dtype=d) for d in (i64, boolean, f32)])


@pytest.mark.parametrize("columns", [*SIZES, 1500])
def test_softmax(columns):
    assert_close(softmax(3, columns), [torch.randn(3, columns)], [torch.zeros(3, columns)], pieces=2)


@pytest.mark.parametrize("columns", [*SIZES, 1500])
def test_layer_norm(columns):
    inputs = [torch.randn(3, columns) + 2, torch.randn(columns), torch.randn(columns)]
    assert_close(layer_norm(3, columns), inputs, [torch.zeros(3, columns), torch.zeros(3)], pieces=2)


@pytest.mark.parametrize("kernel_of", [row_reduce, column_reduce])
@pytest.mark.parametrize("kind", ["sum", "prod", "max", "min", "argmax", "argmin"])
def test_reductions_of_numbers(kind, kernel_of):
    for dtype, (rows, columns) in itertools.product((f32, torch.float64, i64), ((2, 1), (5, 100), (129, 37))):
        x = torch.randint(-3, 4, (rows, columns)).to(dtype)
        if kind == "prod":
            x = torch.where(x.abs() == 3, 2, 1).to(dtype)
        result = i64 if kind.startswith("arg") else dtype
        count = rows if kernel_of is row_reduce else columns
        assert_equal(kernel_of(kind, rows, columns, dtype), [x], [torch.zeros(count, dtype=result)])


@pytest.mark.parametrize("kernel_of", [row_reduce, column_reduce])
@pytest.mark.parametrize("kind", ["any", "all"])
def test_reductions_of_bools(kind, kernel_of):
    for fill in (torch.zeros, torch.ones):
        x = fill(5, 83, dtype=boolean)
        x[1, 82] = not x[1, 82]
        x[3, 0] = not x[3, 0]
        count = 5 if kernel_of is row_reduce else 83
        assert_equal(kernel_of(kind, 5, 83, boolean), [x], [torch.zeros(count, dtype=boolean)])


@pytest.mark.parametrize("kernel_of", [row_reduce, column_reduce])
@pytest.mark.parametrize("kind", ["max", "min", "argmax", "argmin"])
def test_a_nan_anywhere_is_the_extreme(kind, kernel_of):
    x = torch.randn(33, 90)
    for i in range(33):
        x[i, (i * 7) % 90] = float("nan")
        x[i, (i * 7 + 40) % 90] = float("nan")
    x[5] = -float("inf")
    x[6] = float("inf")
    result = i64 if kind.startswith("arg") else f32
    assert_equal(kernel_of(kind, 33, 90), [x], [torch.zeros(33 if kernel_of is row_reduce else 90, dtype=result)])


def test_reductions_over_several_axes_keep_their_order():
    index = at(i1=7 * 9, i2=9, i3=1)
    body = (
        Load("a", "x", at(i0=4 * 7 * 9, i1=9, i2=36, i3=1), f32),
        Reduce("r", "argmax", "a", i64, index),
        Reduce("s", "sum", "a", f32),
    )
    blocks = (Block(axes(4, 7, 9, first=1), body), Block((), (Store("y", at(i0=1), "r"), Store("z", at(i0=1), "s"))))
    kernel = Kernel("k", reads("x") + writes("y", dtype=i64) + writes("z"), axes(5), blocks, "i3")
    x = torch.randint(-9, 10, (5, 4 * 7 * 9)).float()
    assert_equal(kernel, [x], [torch.zeros(5, dtype=i64), torch.zeros(5)])


@pytest.mark.parametrize(("kind", "expected"), [("sum", 0.0), ("max", -float("inf")), ("prod", 1.0)])
@pytest.mark.parametrize("kernel_of", [row_reduce, column_reduce])
def test_a_reduction_of_no_elements_is_its_identity(kernel_of, kind, expected):
    kernel = kernel_of(kind, 3, 0) if kernel_of is row_reduce else kernel_of(kind, 0, 3)
    y = torch.full((3,), 5.0)
    run_compiled(kernel, torch.zeros(1), y)
    assert y.tolist() == [expected] * 3


def test_a_kernel_over_an_empty_axis_has_no_work():
    body = (Constant("c", 1.0, f32), Store("y", at(i1=1), "c"))
    kernel = Kernel("none", writes("y"), axes(0), (Block(axes(4, first=1), body),), "i1")
    assert work_items(kernel, host_target()) == 0


def test_a_kernel_without_axes_runs_once():
    body = (Load("a", "x", at(2), f32), Apply("b", "exp", ("a",), f32), Store("y", at(), "b"))
    kernel = Kernel("scalar", reads("x") + writes("y"), (), (Block((), body),), None)
    assert_close(kernel, [torch.randn(3)], [torch.zeros(1)])


@pytest.mark.parametrize("size", [1, 5, 16, 50])
def test_lanes_along_the_last_outer_axis_of_a_map(size):
    body = (Load("a", "x", at(i0=size, i1=1), f32), Apply("b", "neg", ("a",), f32), Store("y", at(i0=1, i1=3), "b"))
    kernel = Kernel("map", reads("x") + writes("y"), axes(3, size), (Block((), body),), "i1")
    assert_equal(kernel, [torch.randn(3, size)], [torch.zeros(size, 3)], pieces=3)


@pytest.mark.parametrize("size", [3, 40, 200])
def test_lanes_along_the_outer_axis_with_loops_inside(size):
    """Each column minus its mean, stored transposed."""
    rows = 21
    inner = (Axis("r", rows),)
    load = at(i0=rows * size, i1=1, r=size)
    blocks = (
        Block(inner, (Load("a", "x", load, f32), Reduce("s", "sum", "a", f32))),
        Block((), (Constant("n", float(rows), f32), Apply("m", "div", ("s", "n"), f32))),
        Block(
            inner,
            (
                Load("b", "x", load, f32),
                Apply("c", "sub", ("b", "m"), f32),
                Store("y", at(i0=rows * size, i1=rows, r=1), "c"),
            ),
        ),
    )
    kernel = Kernel("centre", reads("x") + writes("y"), axes(2, size), blocks, "i1")
    assert_close(kernel, [torch.randn(2, rows, size)], [torch.zeros(2, size, rows)], pieces=3)


def test_sums_of_many_floats_are_as_exact_as_pairwise_ones():
    n = 1 << 20
    kernel = row_reduce("sum", 1, n)
    for x in (torch.full((n,), 0.1), torch.rand(n)):
        y = torch.zeros(1)
        run_compiled(kernel, x, y)
        exact = x.double().sum().item()
        assert abs(y.item() - exact) <= 2e-7 * exact


def test_column_sums_of_many_floats_are_as_exact_as_pairwise_ones():
    x = torch.full((1 << 16, 20), 0.1)
    y = torch.zeros(20)
    run_compiled(column_reduce("sum", *x.shape), x, y)
    torch.testing.assert_close(y.double(), x.double().sum(0), rtol=2e-7, atol=0)


@pytest.mark.parametrize("target", runnable_targets(), ids=lambda t: f"{t.vector_bytes}bytes")
def test_narrower_targets_compute_the_same(target):
    assert_close(softmax(2, 77), [torch.randn(2, 77)], [torch.zeros(2, 77)], target=target)
    x = torch.randn(33, 90)
    for kernel_of, count in ((row_reduce, 33), (column_reduce, 90)):
        assert_equal(kernel_of("argmax", 33, 90), [x], [torch.zeros(count, dtype=i64)], target=target)
    body = (
        InRange("m", at(i0=1), 3, 40),
        Load("a", "x", at(i0=1), bf16, mask="m", other=1.0),
        Cast("b", "a", f32),
        Apply("c", "add", ("b", "b"), f32),
        Cast("d", "c", bf16),
        Store("y", at(i0=1), "d"),
    )
    kernel = pointwise(45, body, reads("x", dtype=bf16) + writes("y", dtype=bf16))
    assert_equal(kernel, [torch.randn(45).to(bf16)], [torch.zeros(45, dtype=bf16)], target=target)


@pytest.mark.parametrize(
    ("target", "register"),
    [(X86_64_AVX512, r"%zmm\d"), (X86_64_AVX2, r"%ymm\d"), (X86_64_SSE2, r"%xmm\d"), (AARCH64_NEON, r"\bv\d+\.4s")],
    ids=["avx512", "avx2", "sse2", "neon"],
)
def test_each_target_uses_its_widest_registers(target, register):
    text = assembly(emit_module([layer_norm(8, 256), column_reduce("max", 64, 64)], target), target)
    assert len(re.findall(register, text)) > 40


@pytest.mark.parametrize(
    ("target", "instruction"),
    [(X86_64_AVX512, r"\tprefetcht0"), (X86_64_AVX2, r"\tprefetcht0"), (AARCH64_NEON, r"\tprfm\tpldl1keep")],
    ids=["avx512", "avx2", "neon"],
)
def test_rows_that_are_far_apart_are_asked_for_ahead(target, instruction):
    far, near = (assembly(emit_module([column_reduce("sum", 64, n)], target), target) for n in (1024, 64))
    assert re.search(instruction, far)
    assert not re.search(instruction, near)
    assert "prefetch" not in emit_module([row_reduce("sum", 64, 1024)], target)


def test_vectors_side_by_side_leave_each_core_a_work_item():
    kernel = column_reduce("sum", 64, 128)
    items = [work_items(kernel, replace(X86_64_AVX512, cores=cores)) for cores in (1, 2, 4, 64)]
    assert items == [1, 2, 4, 8]


def test_no_fast_math_and_no_contraction():
    text = emit_module([softmax(2, 64), layer_norm(8, 256)], host_target())
    assert not re.search(r"\b(fast|contract|reassoc|nnan|ninf|nsz|arcp|afn)\b", text)
