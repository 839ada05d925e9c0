"""From compiled code to launches: arguments, grids, alignment, and what CUDA's driver is asked to do."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import pytest
import torch

from dsjit.codegen.llvm.executor import KernelCall, StepSequence
from dsjit.codegen.triton.code import GpuCode
from dsjit.codegen.triton.kernels import GpuKernelCache
from dsjit.codegen.triton.launch import Launch, build_launches
from dsjit.codegen.triton.source import KernelSource
from dsjit.codegen.triton.target import TritonTarget
from dsjit.errors import BackendError
from tests.codegen.kernels import generic, row_reduce, softmax
from tests.codegen.triton.machines import InterpretingDriver, code_of, interpreting_machine

TARGET = TritonTarget.parse("cuda:sm_90")


def run(sequence: StepSequence, *addresses: int) -> None:
    """With a table of these addresses."""
    table = (ctypes.c_int64 * len(addresses))(*addresses)
    sequence.run(ctypes.addressof(table), 1)


def test_a_sequence_reads_addresses_from_the_table_when_it_runs() -> None:
    driver = InterpretingDriver()
    (kernel,) = interpreting_machine(driver).kernels.compile_kernels([softmax(4, 10)], False).kernels
    sequence = build_launches([KernelCall(kernel, (2, 0)), KernelCall(kernel, (0, 1), (0, 40))])
    x, y, z = torch.randn(40), torch.zeros(40), torch.zeros(50)
    run(sequence, y.data_ptr(), z.data_ptr(), x.data_ptr())
    torch.testing.assert_close(y.view(4, 10), x.view(4, 10).softmax(-1))
    torch.testing.assert_close(z[10:].view(4, 10), y.view(4, 10).softmax(-1))
    assert [name for name, _ in driver.launched] == ["softmax", "softmax"]


def test_code_that_relies_on_alignment_runs_only_where_there_is_any() -> None:
    driver = InterpretingDriver()
    (kernel,) = interpreting_machine(driver).kernels.compile_kernels([softmax(2, 5)], False).kernels
    sequence = build_launches([KernelCall(kernel, (0, 1))])
    memory = torch.randn(64)
    start = memory.data_ptr()
    for shift in (0, 4, 4):
        run(sequence, start + shift, start + 128)
    assert [code.binary for code in driver.loaded] == [b"(True, True)", b"(False, True)"]


def test_equal_kernels_are_compiled_once() -> None:
    driver = InterpretingDriver()
    cache = interpreting_machine(driver).kernels
    first = cache.compile_kernels([softmax(2, 5), softmax(2, 6), softmax(2, 5)], False)
    again = cache.compile_kernels([softmax(2, 6)], False)
    assert (first.generated, first.reused, again.generated, again.reused) == (2, 1, 0, 1)
    assert first.kernels[0] is first.kernels[2] and again.kernels == first.kernels[1:2]


def test_kernels_of_a_program_are_compiled_side_by_side() -> None:
    together = threading.Barrier(2, timeout=30)

    def compile(*arguments: Any) -> GpuCode:
        together.wait()
        return code_of(*arguments)

    driver = InterpretingDriver()
    opened, _ = generic(softmax(3, 8), 16)
    cache = GpuKernelCache(TARGET, driver, compile)
    kernels = cache.compile_kernels([softmax(2, 5), opened, softmax(2, 5)], False).kernels
    assert [code.source.name for code in driver.loaded] == ["softmax"] * 2
    launch = Launch.of(kernels[1], (0, 1), (0, 0), (16,) * len(opened.sizes))
    assert launch.variant.code is driver.loaded[-1], "sizes that are typical were compiled for"


def test_what_cannot_be_compiled_is_an_error() -> None:
    def refuse(source: KernelSource, *rest: Any) -> GpuCode:
        raise BackendError(f"no {source.name}")

    cache = GpuKernelCache(TARGET, InterpretingDriver(), refuse)
    with pytest.raises(BackendError, match="no softmax"):
        cache.compile_kernels([softmax(2, 5), softmax(2, 6)], False)


def test_an_empty_grid_is_not_launched() -> None:
    kernel, sizes = generic(row_reduce("sum", 5, 70), 1000)
    driver = InterpretingDriver()
    cache = GpuKernelCache(TARGET, driver, code_of)
    (compiled,) = cache.compile_kernels([kernel], False).kernels
    sequence = build_launches([KernelCall(compiled, (0, 1), sizes=(0,) * len(sizes))])
    run(sequence, 16, 16)
    assert driver.launched == []
