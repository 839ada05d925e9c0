"""Launches by native code, on a function that stands for the driver's."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass, field, replace

import pytest

from dsjit.codegen.triton.cuda import CudaDriver
from dsjit.codegen.triton.emitter import emit_kernel
from dsjit.codegen.triton.launch import GpuKernel, Launch
from dsjit.codegen.triton.target import TritonTarget
from dsjit.errors import BackendError
from dsjit.ir.kernel import Kernel
from tests.codegen.kernels import generic, row_reduce, softmax
from tests.codegen.triton.machines import code_of

TARGET = TritonTarget.parse("cuda:sm_90")
SIGNATURE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    *[ctypes.c_uint] * 7,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_int64),
)


@dataclass
class Library:
    """Stands for libcuda. launched: function, programs, threads, shared bytes, stream, arguments of each launch.
    statuses: what the next launches return, before all others succeed. refusal: what loading returns, once the
    thread has entered as many contexts as are needed."""

    launched: list[tuple[object, ...]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    loads: list[bytes] = field(default_factory=list)
    attributes: list[tuple[object, int]] = field(default_factory=list)
    refusal: int = 0
    needed: int = 0
    contexts: int = 0

    def __post_init__(self) -> None:
        self.cuLaunchKernel = SIGNATURE(self.launch)

    def launch(self, function, gx, gy, gz, bx, by, bz, shared, stream, params, extra):
        status = self.statuses.pop(0) if self.statuses else 0
        if status == 0:
            size = ctypes.c_int64.from_address(extra[3]).value
            assert (extra[0], extra[2], extra[4], params, gy, gz, by, bz) == (1, 2, 0, None, 1, 1, 1, 1)
            self.launched.append((function, gx, bx, shared, stream, ctypes.string_at(extra[1], size)))
        return status

    def cuModuleLoadData(self, module, image):
        self.loads.append(image)
        return 201 if self.contexts < self.needed else self.refusal

    def cuModuleGetFunction(self, function, module, name):
        function._obj.value = 77
        return 0

    def cuFuncSetCacheConfig(self, function, config):
        self.attributes.append(("cache", config))
        return 0

    def cuFuncSetAttribute(self, function, attribute, value):
        self.attributes.append((attribute, value.value))
        return 0

    def cuDevicePrimaryCtxRetain(self, context, device):
        context._obj.value = 1000 + device.value
        return 0

    def cuCtxSetCurrent(self, context):
        assert context.value == 1003
        self.contexts += 1
        return 0

    def cuGetErrorString(self, status, text):
        text._obj.value = f"status {status}".encode()
        return 0


@pytest.fixture
def library() -> Library:
    return Library()


def kernel_for(kernel: Kernel, library: Library) -> GpuKernel:
    source = emit_kernel(kernel, TARGET.processors)
    driver = CudaDriver(lambda: 5, library, device=3)
    return GpuKernel(source, driver, lambda source, relied: code_of(source, TARGET, False, relied.aligned))


def run(launches: list[Launch], *table: int) -> None:
    words = (ctypes.c_int64 * len(table))(*table)
    launches[0].kernel.driver.batch(launches)(ctypes.addressof(words))


def test_arguments_are_addresses_then_sizes_then_zeros(library: Library) -> None:
    kernel, sizes = generic(row_reduce("sum", 5, 70), 1000)
    values = tuple(sizes.values())
    plain, opened = kernel_for(softmax(64, 10), library), kernel_for(kernel, library)
    launches = [Launch.of(plain, (2, 0), (0, 32), ()), Launch.of(opened, (1, 2), (0, 0), values)]
    run(launches, 160, 320, 2**40)
    for launch, words, found in zip(
        launches, [(2**40, 192, 0, 0), (320, 2**40, *values, 0, 0)], library.launched, strict=True
    ):
        code = launch.variant.code
        assert found[:-1] == (77, launch.programs, code.threads, code.shared, 5)
        assert found[-1] == struct.pack(f"<{len(words)}q", *words)


def test_buffers_that_are_not_aligned_get_code_of_their_own_in_their_turn(library: Library) -> None:
    kernel = kernel_for(softmax(64, 10), library)
    run([Launch.of(kernel, slots, (0, 0), ()) for slots in [(0, 1), (1, 2), (2, 2), (0, 0)]], 16, 32, 72)
    pairs = [struct.unpack("<4q", launched[-1])[:2] for launched in library.launched]
    assert pairs == [(16, 32), (32, 72), (72, 72), (16, 16)]
    assert {relied.aligned for relied in kernel.variants} == {(True, True), (True, False), (False, False)}


def test_a_thread_without_a_context_gets_one_and_goes_on(library: Library) -> None:
    library.statuses = [0, 201]
    kernel = kernel_for(softmax(64, 10), library)
    run([Launch.of(kernel, (number, number), (0, 0), ()) for number in range(3)], 16, 32, 48)
    assert [struct.unpack("<4q", launched[-1])[0] for launched in library.launched] == [16, 32, 48]
    assert library.contexts == 1


def test_what_the_driver_says_is_raised(library: Library) -> None:
    library.statuses = [0, 700]
    kernel = kernel_for(softmax(64, 10), library)
    with pytest.raises(BackendError, match="softmax: status 700"):
        run([Launch.of(kernel, (0, 1), (0, 0), ())] * 3, 16, 32)
    assert len(library.launched) == 1


def test_a_module_is_loaded_once_and_asks_for_much_shared_memory(library: Library) -> None:
    driver, code = CudaDriver(lambda: 0, library), code_of(emit_kernel(softmax(4, 10), 132), TARGET)
    assert [driver.load(code), driver.load(code)] == [77, 77] and library.loads == [code.binary]
    assert library.attributes == []
    driver.load(replace(code, binary=b"other", shared=100_000))
    assert library.attributes == [("cache", 1), (8, 100_000)]


def test_loading_in_a_thread_without_a_context_enters_one(library: Library) -> None:
    library.needed = 1
    assert CudaDriver(lambda: 0, library, device=3).load(code_of(emit_kernel(softmax(4, 10), 132), TARGET)) == 77
    assert library.contexts == 1


def test_code_that_the_driver_refuses_is_an_error(library: Library) -> None:
    library.refusal = 2
    with pytest.raises(BackendError, match="softmax: status 2"):
        CudaDriver(lambda: 0, library).load(code_of(emit_kernel(softmax(4, 10), 132), TARGET))
