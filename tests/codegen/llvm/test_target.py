"""Targets: what is known of a machine, and what is emitted for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dsjit.codegen.llvm.schedule import Schedule, work_cost, work_items
from dsjit.codegen.llvm.symbols import native_symbol, sleef_symbols
from dsjit.codegen.llvm.target import AARCH64_NEON, X86_64_AVX2, X86_64_AVX512, X86_64_SSE2, host_target
from dsjit.ir.kernel import Apply, Block, Constant, Kernel, Load, Param, Reduce, Store
from tests.codegen.kernels import at, axes, column_reduce, pointwise, reads, row_reduce, softmax, writes

f32 = torch.float32


@pytest.mark.parametrize(
    ("target", "lanes", "fma"),
    [(X86_64_AVX512, 16, True), (X86_64_AVX2, 8, True), (X86_64_SSE2, 4, False), (AARCH64_NEON, 4, True)],
)
def test_lanes_and_fused_multiply_add(target, lanes, fma):
    assert target.lanes == lanes
    assert target.has_fma is fma
    assert target.is_x86 is not target.is_aarch64


def test_the_host_uses_its_widest_registers_and_a_cpu_name_that_claims_nothing():
    host = host_target()
    assert host.cpu == ("x86-64" if host.is_x86 else "generic")
    assert "+prefer-256-bit" not in host.features
    assert host.vector_bytes == (64 if host.has_feature("avx512f") else 32 if host.has_feature("avx2") else 16)


def test_symbols_are_found_in_what_torch_has_loaded():
    assert native_symbol("memcpy") is not None
    assert native_symbol("no_such_function_anywhere") is None
    assert all(native_symbol(name) is not None for name in sleef_symbols())
    assert host_target().symbols == sleef_symbols()


def map_over(*sizes: int) -> Kernel:
    strides = [1]
    for size in reversed(sizes[1:]):
        strides.insert(0, strides[0] * size)
    index = at(**{f"i{number}": stride for number, stride in enumerate(strides)})
    body = (Load("a", "x", index, f32), Store("y", index, "a"))
    return Kernel("map", reads("x") + writes("y"), (), (Block(axes(*sizes), body),), f"i{len(sizes) - 1}")


@pytest.mark.parametrize("sizes", [(4096, 1024), (64, 64, 1024), (4096, 1, 1024), (4194304, 1)], ids=str)
def test_contiguous_axes_of_a_map_become_one(sizes):
    schedule = Schedule.of(map_over(*sizes), X86_64_AVX512)
    assert schedule.outer == ()
    assert [axis.size for axis in schedule.blocks[0].axes] == [4194304]


def test_axes_that_an_index_steps_through_apart_stay_apart():
    body = (Load("a", "x", at(i1=1), f32), Store("y", at(i0=1000, i1=1), "a"))
    kernel = Kernel("broadcast", reads("x") + writes("y"), (), (Block(axes(50, 1000), body),), "i1")
    schedule = Schedule.of(kernel, X86_64_AVX512)
    assert [axis.size for axis in schedule.outer] == [50]
    assert schedule.blocks[0].axes[0].size == 1000


def test_a_map_is_cut_into_chunks_for_threads():
    kernel = map_over(1000000)
    assert work_items(kernel, X86_64_AVX512) == -(-1000000 // 1024)
    assert work_items(kernel, AARCH64_NEON) == -(-1000000 // 256)


def test_rows_and_groups_of_columns_are_work_items():
    assert work_items(softmax(77, 1000), X86_64_AVX512) == 77
    assert work_items(row_reduce("sum", 1, 1000), X86_64_AVX512) == 1
    assert work_items(column_reduce("sum", 1000, 1024), X86_64_AVX512) == 1024 // 128
    assert work_items(column_reduce("sum", 1000, 16), X86_64_AVX512) == 1


def test_a_kernel_that_writes_before_its_loop_is_not_cut():
    blocks = (
        Block((), (Constant("c", 1.0, f32), Store("y", at(), "c"))),
        Block(axes(100000), (Load("a", "x", at(i0=1), f32), Store("z", at(i0=1), "a"))),
    )
    kernel = Kernel("two", reads("x") + writes("y", "z"), (), blocks, "i0")
    assert work_items(kernel, X86_64_AVX512) == 1


def test_a_kernel_that_updates_what_it_read_before_its_loop_is_not_cut():
    blocks = (
        Block((), (Load("first", "x", at(), f32),)),
        Block(
            axes(100000),
            (Load("a", "x", at(i0=1), f32), Apply("b", "sub", ("a", "first"), f32), Store("x", at(i0=1), "b")),
        ),
    )
    kernel = Kernel("shift", (Param("x", f32, "readwrite"),), (), blocks, "i0")
    assert work_items(kernel, X86_64_AVX512) == 1
    assert work_items(replace(kernel, params=reads("x")), X86_64_AVX512) > 1


def test_cost_grows_with_the_work_of_an_item():
    short, long = (work_cost(softmax(4, columns), X86_64_AVX512) for columns in (64, 4096))
    assert 20 * short < long
    assert work_cost(pointwise(1, (Constant("c", 1.0, f32), Store("y", at(i0=1), "c")), writes("y")), X86_64_AVX2) >= 1


def test_a_reduction_makes_a_kernel_no_map():
    kernel = row_reduce("sum", 3, 5000)
    assert any(isinstance(statement, Reduce) for statement in kernel.blocks[0].body)
    assert Schedule.of(kernel, X86_64_AVX512).chunk is None
