"""What memory bounds moves 16 bytes at once, each element once, with programs enough to keep an H100 busy."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional as F

from dsjit.api.cross_compile import gpu_units
from dsjit.codegen.triton.code import GpuCode
from dsjit.codegen.triton.compiler import compile_source, resources
from dsjit.codegen.triton.emit import emit_for_target
from dsjit.codegen.triton.emitter import emit_kernel
from dsjit.codegen.triton.source import KernelSource
from dsjit.codegen.triton.target import TritonTarget
from dsjit.fusion.lower import FusedKernel
from tests.codegen.kernels import generic
from tests.codegen.triton.canonical import rms_norm

H100 = TritonTarget.parse("cuda:sm_90")
REGISTERS = 65536
"""Of a processor."""


def chain(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x * 2 + x.sigmoid())


def softmax(x: torch.Tensor) -> torch.Tensor:
    return x.softmax(-1)


def layer_norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (x.shape[-1],), w, b)


WEIGHTS = {chain: 0, softmax: 0, layer_norm: 2, rms_norm: 1}
SHAPES = [(4096, 4096), (8192, 1024), (16384, 768), (2048, 8192)]


def compiled(function, rows: int, columns: int, dtype: torch.dtype) -> tuple[KernelSource, GpuCode]:
    weights = [torch.ones(columns, dtype=dtype) for _ in range(WEIGHTS[function])]
    (unit,) = gpu_units(function, (torch.ones(rows, columns, dtype=dtype), *weights))
    assert isinstance(unit, FusedKernel)
    source = emit_for_target(unit.kernel, H100)
    return source, compile_source(source, H100)


@pytest.mark.parametrize("function", WEIGHTS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streams_run_at_full_width(function, rows, columns, dtype):
    source, code = compiled(function, rows, columns, dtype)
    assembly = code.assembly
    loads, stores = (re.findall(rf"{kind}\.global\S*", assembly) for kind in ("ld", "st"))
    assert set(stores) == {"st.global.v4.b32"}
    assert set(loads) <= {"ld.global.v4.b32", "ld.global.v2.b32"}  # a thread may need fewer weights
    moved = source.schedule.program_count({}) * code.threads * 16 * len(stores)
    padding = 1 << (columns - 1).bit_length() if function is not chain else columns
    assert moved == rows * padding * dtype.itemsize  # each element once, none in a loop
    assert len(loads) <= (1 + WEIGHTS[function]) * len(stores)
    assert not re.search(r"(mul|mad)\.(lo|hi)\.[su]64", assembly)
    assert not re.search(r"%\w+ (ld|st)\.global", assembly) or columns & (columns - 1)
    assert source.schedule.program_count({}) >= 8 * H100.processors
    used = resources(code)
    assert used.spills == 0
    assert 2 * code.threads * used.registers <= REGISTERS


def test_a_row_beyond_the_registers_is_read_again():
    _, code = compiled(softmax, 512, 32768, torch.float32)
    assert len(re.findall(r"ld\.global\S*", code.assembly)) > len(re.findall(r"st\.global\S*", code.assembly))


@pytest.mark.parametrize("function", [chain, softmax])
@pytest.mark.parametrize("narrow", [False, True])
def test_open_sizes_that_are_multiples_of_16_cost_no_width(function, narrow):
    (unit,) = gpu_units(function, (torch.ones(300, 4096),))
    kernel, _ = generic(unit.kernel, 1000)
    source = emit_kernel(kernel, H100.processors, narrow=narrow)
    code = compile_source(source, H100, divisible=[True] * len(source.sizes))
    loads, stores = (set(re.findall(rf"{kind}\.global\S*", code.assembly)) for kind in ("ld", "st"))
    assert (loads, stores) == ({"ld.global.v4.b32"}, {"st.global.v4.b32"})
    assert resources(code).spills == 0
