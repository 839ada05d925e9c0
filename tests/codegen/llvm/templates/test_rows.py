"""The template of `index_add`: its sums, in the order of eager's, what it refuses, and its machine code."""

from __future__ import annotations

import re

import pytest
import torch

from dsjit.codegen.llvm.engine import KernelCache, assembly
from dsjit.codegen.llvm.executor import KernelCall, build_sequence
from dsjit.codegen.llvm.target import AARCH64_NEON, X86_64_AVX2, X86_64_AVX512, X86_64_SSE2
from dsjit.codegen.llvm.templates.rows import emit_add_rows
from dsjit.codegen.templates.rows import AddRowsTemplate

TARGETS = {"AVX-512": X86_64_AVX512, "AVX2": X86_64_AVX2, "SSE2": X86_64_SSE2, "NEON": AARCH64_NEON}


def add_rows(first, index, source, threads=1, over=True):
    """The result and the flag. over: where the first operand was."""
    template = AddRowsTemplate(first.dtype, index.dtype)
    kernel = KernelCache().compile_kernels([template]).kernels[0]
    sizes = (len(index), first[0].numel(), len(first), index.stride(0))
    first = first.clone()
    flag, output = torch.zeros(1, dtype=torch.int64), first if over else torch.full_like(first, 7)
    buffers = (output, first, source, index, flag)
    sequence = build_sequence([KernelCall(kernel, (0, 1, 2, 3, 4), (0,) * 5, sizes, zero=5)])
    table = torch.tensor([*[buffer.data_ptr() for buffer in buffers], 0])
    sequence.run(table.data_ptr(), threads)
    return output, int(flag)


def tensors(dtype=torch.float32, rows=80, columns=37, extent=20, number=torch.int64):
    generator = torch.Generator().manual_seed(0)
    output, source = (torch.randn(n, columns, generator=generator).mul(50).to(dtype) for n in (extent, rows))
    return output, torch.randint(0, extent, (rows,), generator=generator).to(number), source


@pytest.mark.parametrize("number", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64])
@pytest.mark.parametrize("columns", [1, 3, 16, 64, 65, 200])
@pytest.mark.parametrize("over", [True, False])
def test_sums_are_those_of_eager_to_the_bit(dtype, number, columns, over):
    """Also where rows are named several times: they come in their order."""
    output, index, source = tensors(dtype, columns=columns, number=number)
    found, flag = add_rows(output, index, source, over=over)
    assert flag == 0
    assert torch.equal(found, output.index_add(0, index, source))


def test_threads_share_the_columns_of_every_row():
    output, index, source = tensors(rows=5000, columns=1000)
    assert torch.equal(add_rows(output, index, source, threads=2)[0], add_rows(output, index, source)[0])


def test_numbers_need_not_lie_side_by_side():
    output, _, source = tensors()
    index = torch.randint(0, 20, (80, 3))[:, 1]
    assert torch.equal(add_rows(output, index, source)[0], output.index_add(0, index, source))


@pytest.mark.parametrize("wrong", [-1, 20, -(2**40), 2**62])
def test_a_row_out_of_range_is_told_and_touches_nothing(wrong):
    output, index, source = tensors()
    kept = torch.arange(80) != 41
    index[41] = wrong
    found, flag = add_rows(output, index, source)
    assert flag == 1
    assert torch.equal(found, output.index_add(0, index[kept], source[kept]))


def test_no_rows_change_nothing():
    output, index, source = tensors(rows=0)
    assert torch.equal(add_rows(output, index, source, over=False)[0], output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("target", "register"), [
    ("AVX-512", r"\tvaddp[sd].*%zmm"), ("AVX2", r"\tvaddp[sd].*%ymm"), ("SSE2", r"\taddp[sd].*%xmm"),
    ("NEON", r"\tfadd\tv\d+\.[42][sd]"),
])  # fmt: skip
def test_whole_registers_are_added(target, register, dtype):
    template = AddRowsTemplate(dtype, torch.int64)
    text = assembly(emit_add_rows(template, "add_rows", TARGETS[target]), TARGETS[target])
    assert re.search(register, text)
