"""From compiled code to launches: arguments, grids, alignment, and what CUDA's driver is asked to do."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import replace

import pytest
import torch

from dsjit.codegen.llvm.executor import KernelCall, StepSequence
from dsjit.codegen.triton.cuda import CudaDriver
from dsjit.codegen.triton.emitter import emit_kernel
from dsjit.codegen.triton.kernels import GpuKernelCache
from dsjit.codegen.triton.launch import build_launches
from dsjit.codegen.triton.target import TritonTarget
from dsjit.errors import BackendError
from tests.codegen.kernels import generic, row_reduce, softmax
from tests.codegen.triton.machines import InterpretingDriver, code_of, interpreting_machine

TARGET = TritonTarget.parse("cuda:sm_90")


def run(sequence: StepSequence, *addresses: int) -> None:
    """With a table of these addresses."""
    table = (ctypes.c_int64 * len(addresses))(*addresses)
    sequence.run(ctypes.addressof(table), 1)


def test_arguments_are_addresses_then_sizes_then_tritons_own() -> None:
    kernel, sizes = generic(row_reduce("sum", 5, 70), 1000)
    code = code_of(emit_kernel(kernel, TARGET.processors), TARGET)
    library, values = Library(), list(sizes.values())
    CudaDriver(lambda: 0, library).prepare(77, 1, code)([2**40, 3, *values])
    assert library.calls[-1][-1] == struct.pack(f"<{4 + len(values)}q", 2**40, 3, *values, 0, 0)


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


def test_an_empty_grid_is_not_launched() -> None:
    kernel, sizes = generic(row_reduce("sum", 5, 70), 1000)
    driver = InterpretingDriver()
    cache = GpuKernelCache(TARGET, driver, code_of)
    (compiled,) = cache.compile_kernels([kernel], False).kernels
    sequence = build_launches([KernelCall(compiled, (0, 1), sizes=(0,) * len(sizes))])
    run(sequence, 16, 16)
    assert driver.launched == []


class Library:
    """Stands for libcuda: notes what it is asked, and fails when told to."""

    def __init__(self, status: int = 0, has_context: bool = True) -> None:
        self.status = status
        self.has_context = has_context
        self.calls: list[tuple] = []

    def cuModuleLoadData(self, module, image):
        self.calls.append(("load", image))
        return self.status if self.has_context else 201

    def cuDevicePrimaryCtxRetain(self, context, device):
        context._obj.value = 1000 + device.value
        return 0

    def cuCtxSetCurrent(self, context):
        self.calls.append(("context", context.value))
        self.has_context = True
        return 0

    def cuModuleGetFunction(self, function, module, name):
        function._obj.value = 77
        self.calls.append(("function", name))
        return 0

    def cuFuncSetCacheConfig(self, function, config):
        self.calls.append(("cache", config))
        return 0

    def cuFuncSetAttribute(self, function, attribute, value):
        self.calls.append(("attribute", attribute, value.value))
        return 0

    def cuLaunchKernel(self, function, *rest):
        if not self.has_context:
            return 201
        extra = rest[-1]
        size = ctypes.cast(extra[3], ctypes.POINTER(ctypes.c_size_t)).contents.value
        assert (extra[0], extra[2], extra[4]) == (1, 2, None)
        self.calls.append(("launch", function, *rest[:-2], ctypes.string_at(extra[1], size)))
        return 0

    def cuGetErrorString(self, status, text):
        text._obj.value = b"out of luck"
        return 0


def test_a_thread_without_a_context_gets_that_of_the_device() -> None:
    library = Library(has_context=False)
    driver = CudaDriver(lambda: 0, library, device=3)
    code = code_of(emit_kernel(softmax(4, 10), 132), TARGET)
    assert driver.load(code) == 77
    assert library.calls == [("load", code.binary), ("context", 1003), ("load", code.binary), ("function", b"softmax")]
    library.calls.clear()
    library.has_context = False
    driver.prepare(77, 12, code)((64, 128))
    assert [name for name, *_ in library.calls] == ["context", "launch"]


def test_cuda_is_asked_for_a_module_once_and_for_launches_on_the_current_stream() -> None:
    library = Library()
    driver = CudaDriver(lambda: 5, library)
    code = code_of(emit_kernel(softmax(4, 10), 132), TARGET, aligned=(True,))
    for _ in range(2):
        assert driver.load(code) == 77
    driver.prepare(77, 12, code)((64, 128))
    launch = ("launch", 77, 12, 1, 1, code.threads, 1, 1, code.shared, 5, struct.pack("<4q", 64, 128, 0, 0))
    assert library.calls == [("load", code.binary), ("function", b"softmax"), launch]


def test_shared_memory_beyond_48_kib_is_asked_for() -> None:
    code = code_of(emit_kernel(softmax(4, 10), 132), TARGET)
    prefer_shared, max_dynamic_shared = 1, 8
    for shared, asked in (
        (48 << 10, []),
        (200_000, [("cache", prefer_shared), ("attribute", max_dynamic_shared, 200_000)]),
    ):
        library = Library()
        CudaDriver(lambda: 0, library).load(replace(code, shared=shared, binary=bytes(shared % 7)))
        assert library.calls[2:] == asked


def test_what_cuda_says_is_raised() -> None:
    code = code_of(emit_kernel(softmax(4, 10), 132), TARGET)
    with pytest.raises(BackendError, match=r"softmax: out of luck"):
        CudaDriver(lambda: 0, Library(2)).load(code)
