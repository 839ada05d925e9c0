"""What Triton source looks like, and what it takes care of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dsjit.codegen.triton.emitter import emit_kernel
from dsjit.codegen.triton.interpret import interpret_source
from dsjit.codegen.triton.schedule import Schedule
from dsjit.ir.graph import Source
from dsjit.ir.kernel import (
    Apply,
    Axis,
    Block,
    Cast,
    Constant,
    Index,
    IndexValue,
    InRange,
    Kernel,
    Load,
    Param,
    Reduce,
    Store,
)
from tests.codegen.kernels import (
    at,
    axes,
    column_reduce,
    generic,
    pointwise,
    reads,
    row_reduce,
    run_interpreted,
    softmax,
    writes,
)
from tests.codegen.triton.running import outputs

f32, i64, bf16 = torch.float32, torch.int64, torch.bfloat16
PROCESSORS = 132


def text(kernel: Kernel) -> str:
    return emit_kernel(kernel, PROCESSORS).text


def check(kernel: Kernel, inputs: list[torch.Tensor], results: list[torch.Tensor]) -> None:
    for expected, found in zip(*outputs(kernel, inputs, results), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_source_reads_like_the_kernel_and_names_the_users_lines() -> None:
    line = Source("/home/me/model.py", 12, "forward")
    body = [
        Load("v0", "x", at(i0=1), f32),
        Apply("v1", "mul", ("v0", "v0"), f32, line),
        Store("out", at(i0=1), "v1"),
    ]
    assert (
        text(pointwise(1000, body, reads("x") + writes("out")))
        == """\
@triton.jit
def pointwise(x_1, out, XBLOCK: tl.constexpr):
    # /home/me/model.py, line 12
    x = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)
    x_in = x < 1000
    v0 = tl.load(x_1 + x, mask=x_in)
    v1 = v0 * v0  # model.py:12
    tl.store(out + x, v1, mask=x_in)
"""
    )


def test_source_depends_on_the_kernel_alone() -> None:
    assert text(softmax(64, 100)) == text(softmax(64, 100))


def test_a_row_that_fits_is_loaded_once() -> None:
    source = text(softmax(64, 1000))
    assert source.count("tl.load") == 1 and "for " not in source


def test_a_longer_row_is_looped_over_in_each_block() -> None:
    source = text(softmax(64, 100_000))
    assert source.count("tl.load") == 3 and source.count("for r_start in range(0, 100000, RBLOCK)") == 3


@pytest.mark.parametrize("columns", [1, 7, 64, 9000], ids="columns={}".format)
@pytest.mark.parametrize("kind", ["sum", "prod", "max", "min", "argmax", "argmin"])
def test_reductions_of_rows_and_columns(kind: str, columns: int) -> None:
    values = torch.randint(-2, 3, (3 * columns,), generator=torch.Generator().manual_seed(columns)).float()
    if kind != "prod":
        values[columns // 2] = float("nan")
    result = torch.zeros(3, dtype=i64 if kind.startswith("arg") else f32)
    check(row_reduce(kind, 3, columns), [values], [result])
    wide = torch.zeros(columns, dtype=result.dtype)
    if columns <= 64:
        check(column_reduce(kind, 3, columns), [values], [wide])


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, i64, torch.float64])
@pytest.mark.parametrize("kind", ["max", "argmin"])
def test_extremes_of_every_dtype(kind: str, dtype: torch.dtype) -> None:
    values = torch.arange(77).to(dtype).flip(0).contiguous()
    check(row_reduce(kind, 7, 11, dtype), [values], [torch.zeros(7, dtype=i64 if kind == "argmin" else dtype)])


@pytest.mark.parametrize("kind", ["any", "all"])
def test_reductions_of_bools(kind: str) -> None:
    values = torch.tensor([[True, True], [False, True], [False, False]]).reshape(-1)
    check(row_reduce(kind, 3, 2, torch.bool), [values], [torch.zeros(3, dtype=torch.bool)])


def transposed_add(rows: int, columns: int) -> Kernel:
    body = (
        Load("a", "x", at(i0=columns, i1=1), f32),
        Load("b", "y", at(i0=1, i1=rows), f32),
        Apply("c", "add", ("a", "b"), f32),
        Store("z", at(i0=columns, i1=1), "c"),
    )
    return Kernel("add", reads("x", "y") + writes("z"), axes(rows), (Block(axes(columns, first=1), body),), "i1")


def test_a_transposed_read_gets_tiles_in_two_dimensions() -> None:
    schedule = Schedule.of(transposed_add(500, 300), PROCESSORS)
    assert [(tile.name, tile.block) for tile in schedule.programs] == [("y", 32), ("x", 32)]
    check(transposed_add(50, 41), [torch.randn(2050), torch.randn(2050)], [torch.zeros(2050)])


def test_axes_that_every_access_steps_through_as_one_are_one() -> None:
    body = (Load("a", "x", at(i0=64, i1=1), f32), Store("y", at(i0=64, i1=1), "a"))
    kernel = Kernel("copy", reads("x") + writes("y"), axes(8), (Block(axes(64, first=1), body),), "i1")
    assert "//" not in text(kernel)


@pytest.mark.parametrize(("elements", "expected"), [(1000, False), (2**31, True)])
def test_indices_have_64_bits_where_sizes_need_them(elements: int, expected: bool) -> None:
    body = [Load("a", "x", at(i0=1), f32), Store("y", at(i0=1), "a")]
    assert ("tl.int64" in text(pointwise(elements, body, reads("x") + writes("y")))) is expected


def test_bounds_that_the_axes_imply_are_not_tested() -> None:
    body = [
        InRange("m", at(i0=1), 0, 50),
        Load("a", "x", at(i0=1), f32, "m", 7.0),
        Store("y", at(i0=1), "a"),
    ]
    kernel = pointwise(100, body, reads("x") + writes("y"))
    assert "m = x < 50\n" in text(kernel)
    check(kernel, [torch.randn(100)], [torch.zeros(100)])


def test_bfloat16_is_rounded_to_nearest_even_and_nan_stays_nan() -> None:
    body = [Load("a", "x", at(i0=1), f32), Cast("b", "a", bf16), Store("y", at(i0=1), "b")]
    kernel = pointwise(6, body, reads("x") + writes("y", dtype=bf16))
    values = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, float("nan"), -1e-40, 1 + 2**-8 + 2**-20])
    check(kernel, [values], [torch.zeros(6, dtype=bf16)])


def test_zeros_keep_their_signs() -> None:
    body = [
        Load("a", "x", at(i0=1), f32),
        Constant("z", -0.0, f32),
        Apply("s", "add", ("a", "z"), f32),
        Apply("n", "neg", ("s",), f32),
        InRange("m", at(i0=1), 1, 3),
        Load("b", "x", at(i0=1), f32, "m", -0.0),
        Store("y", at(i0=1), "n"),
        Store("w", at(i0=1), "b"),
    ]
    kernel = pointwise(4, body, reads("x") + writes("y", "w"))
    for expected, found in zip(
        *outputs(kernel, [torch.tensor([0.0, -0.0, 1.0, 0.0])], [torch.ones(4)] * 2), strict=True
    ):
        assert torch.equal(torch.signbit(found), torch.signbit(expected))


def test_what_was_stored_is_not_loaded_again_while_the_row_is_held() -> None:

    def spill(columns: int) -> Kernel:
        here, row = at(i0=columns, i1=1), axes(columns, first=1)
        return Kernel(
            "spill",
            (*reads("x"), Param("y", f32, "readwrite")),
            axes(3),
            (
                Block(row, (
                    Load("a", "x", here, f32), Apply("b", "mul", ("a", "a"), f32), Store("y", here, "b"),
                    Reduce("t", "sum", "b", f32),
                )),
                Block(row, (
                    Load("c", "y", here, f32), Apply("d", "add", ("c", "t"), f32), Store("y", here, "d"),
                )),
            ),
            "i1",
        )  # fmt: skip

    held, looped = text(spill(100)), text(spill(9000))
    assert held.count("tl.load") == 1 and held.count("tl.store") == 1 and "debug_barrier" not in held
    assert looped.count("tl.load") == 2 and looped.count("tl.store") == 2 and looped.count("debug_barrier") == 2
    values = torch.randint(-2, 3, (3 * 9000,)).float()
    check(spill(9000), [values], [torch.zeros(3 * 9000)])
    check(spill(100), [values[:300]], [torch.zeros(300)])


def test_names_of_the_source_s_own_are_not_taken() -> None:
    params = (Param("tl", f32, "read"), Param("for", f32, "write"))
    body = (Load("XBLOCK", "tl", at(x=1), f32), Store("for", at(x=1), "XBLOCK"))
    check(Kernel("total", params, (), (Block((Axis("x", 5),), body),), "x"), [torch.randn(5)], [torch.zeros(5)])


def test_positions_and_kernels_without_axes() -> None:
    body = (IndexValue("p", Index(3)), Store("y", Index(), "p"))
    check(Kernel("k", writes("y", dtype=i64), (), (Block((), body),)), [], [torch.zeros(1, dtype=i64)])


def test_sizes_that_are_parameters_are_arguments() -> None:
    kernel, sizes = generic(row_reduce("sum", 5, 70), 1000)
    source = emit_kernel(kernel, PROCESSORS)
    assert source.sizes == tuple(sizes) and source.schedule.program_count(sizes) >= 1
    assert replace(kernel, sizes=()) != kernel


@pytest.mark.parametrize("kernel", [transposed_add(50, 41), row_reduce("argmax", 5, 70), softmax(3, 9)], ids=str)
@pytest.mark.parametrize("narrow", [False, True])
def test_sizes_are_64_bits_wide_or_32_where_these_hold_every_index(kernel: Kernel, narrow: bool) -> None:
    opened, sizes = generic(kernel, 1000)
    source = emit_kernel(opened, PROCESSORS, narrow=narrow)
    assert ("program_id(0).to(tl.int64)" in source.text) is not narrow
    assert all((f"{name} = {name}.to(tl.int32)" in source.text) is narrow for name in source.sizes)
    generator = torch.Generator().manual_seed(0)
    buffers = [torch.randn(2100, generator=generator).to(param.dtype) for param in kernel.params]
    expected, found = [each.clone() for each in buffers], [each.clone() for each in buffers]
    run_interpreted(kernel, *expected)
    names = [param.name for param in opened.params]
    interpret_source(source, dict(zip(names, found, strict=True)), sizes=sizes)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)
