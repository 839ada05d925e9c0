"""Sequences of kernels and products, run by the native driver."""

from __future__ import annotations

import ctypes
import gc
import time
from types import SimpleNamespace

import pytest
import torch

from dsjit.codegen.llvm import executor
from dsjit.codegen.llvm.driver import driver_text, has_threads
from dsjit.codegen.llvm.engine import KernelCache, compile_module
from dsjit.codegen.llvm.executor import (
    BufferRef,
    GemmCall,
    KernelCall,
    StepSequence,
    build_sequence,
    gemm_available,
)
from dsjit.codegen.llvm.target import host_target
from dsjit.errors import BackendError
from dsjit.ir.kernel import Apply, Load, Store
from tests.codegen.kernels import at, pointwise, reads, row_reduce, softmax, writes

f32, f64 = torch.float32, torch.float64


def run(sequence: StepSequence, *tensors: torch.Tensor, threads: int = 1) -> None:
    """Runs with a table of the tensors' addresses."""
    table = (ctypes.c_int64 * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
    sequence.run(ctypes.addressof(table), threads)


def compiled(kernel):
    return KernelCache().compile_kernels([kernel]).kernels[0]


def doubled(size: int):
    body = (Load("a", "x", at(i0=1), f32), Apply("b", "add", ("a", "a"), f32), Store("y", at(i0=1), "b"))
    return compiled(pointwise(size, body, reads("x") + writes("y")))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_kernel_gives_the_same_on_any_number_of_threads(threads):
    x, y = torch.randn(2000, 100), torch.zeros(2000, 100)
    run(build_sequence([KernelCall(compiled(softmax(2000, 100)), (0, 1))]), x, y, threads=threads)
    torch.testing.assert_close(y, x.softmax(-1))


def test_steps_run_in_order_and_slots_name_buffers():
    x, y, z = torch.arange(100.0), torch.zeros(100), torch.zeros(100)
    kernel = doubled(100)
    calls = [KernelCall(kernel, (2, 0)), KernelCall(kernel, (0, 1)), KernelCall(kernel, (1, 1))]
    run(build_sequence(calls), y, z, x, threads=2)
    assert torch.equal(y, 2 * x)
    assert torch.equal(z, 8 * x)


def test_offsets_are_bytes_after_the_address_in_the_table():
    x, y = torch.arange(200.0), torch.zeros(200)
    run(build_sequence([KernelCall(doubled(50), (0, 1), (400, 40))]), x, y, threads=1)
    assert torch.equal(y[10:60], 2 * x[100:150])
    assert y[:10].sum() == y[60:].sum() == 0


def test_one_sequence_serves_many_tables():
    sequence = build_sequence([KernelCall(doubled(10), (0, 1))])
    for value in (1.0, 2.0):
        x, y = torch.full((10,), value), torch.zeros(10)
        run(sequence, x, y)
        assert torch.equal(y, 2 * x)


def test_run_keeps_its_steps_alive():
    bound = build_sequence([KernelCall(doubled(10), (0, 1))]).run
    gc.collect()
    x, y = torch.ones(10), torch.zeros(10)
    table = (ctypes.c_int64 * 2)(x.data_ptr(), y.data_ptr())
    bound(ctypes.addressof(table), 1)
    assert torch.equal(y, 2 * x)


def test_an_empty_sequence_does_nothing():
    sequence = build_sequence([])
    sequence.run(0, 1)
    assert len(sequence) == 0


def plan(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> SimpleNamespace:
    """What `GemmCall.row_major` asks of a plan, for batches of matrices of any strides."""

    def matrix(t: torch.Tensor) -> SimpleNamespace:
        batch, row, column = t.stride()
        return SimpleNamespace(offset=t.storage_offset(), batch=batch, row=row, column=column)

    count, m, k = a.shape
    n = b.shape[-1]
    c = SimpleNamespace(offset=0, batch=m * n, row=n, column=1)
    return SimpleNamespace(a=matrix(a), b=matrix(b), c=c, batch=count, m=m, n=n, k=k, dtype=dtype)


def layouts(batch: int, rows: int, columns: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Row-major, column-major, and a window of a larger matrix."""
    return [
        torch.randn(batch, rows, columns, dtype=dtype),
        torch.randn(batch, columns, rows, dtype=dtype).transpose(1, 2),
        torch.randn(batch, rows + 1, columns + 3, dtype=dtype)[:, 1:, 2 : 2 + columns],
    ]


def assert_products(m: int, n: int, k: int, batch: int, dtype: torch.dtype, threads: int) -> None:
    for a in layouts(batch, m, k, dtype):
        for b in layouts(batch, k, n, dtype):
            c = torch.full((batch, m, n), float("nan"), dtype=dtype)
            call = GemmCall.row_major(plan(a, b, dtype), (0, 1, 2))  # type: ignore[arg-type]
            run(build_sequence([call]), a.untyped_storage(), b.untyped_storage(), c, threads=threads)  # type: ignore
            torch.testing.assert_close(c, a @ b)


@pytest.mark.skipif(not gemm_available(), reason="this torch exports no Fortran BLAS")
class TestGemm:
    @pytest.mark.parametrize("dtype", [f32, f64])
    @pytest.mark.parametrize("sizes", [(3, 4, 5), (1, 7, 2), (7, 1, 3), (5, 6, 1), (1, 1, 1)], ids=str)
    def test_products_of_any_layout(self, sizes, dtype):
        assert_products(*sizes, 1, dtype, 2)

    @pytest.mark.parametrize("dtype", [f32, f64])
    @pytest.mark.parametrize("batch", [2, 256, 300, 600])
    def test_batches(self, batch, dtype):
        assert_products(8, 6, 10, batch, dtype, 2)

    @pytest.mark.parametrize("batch", [2, 300])
    def test_batches_without_a_function_for_batches(self, batch, monkeypatch):
        monkeypatch.setattr(executor, "_BATCHED_BLAS", {f32: "no_such_function"})
        assert_products(8, 6, 10, batch, f32, 2)

    def test_alpha_and_beta(self):
        a, b, c = torch.randn(4, 3), torch.randn(3, 5), torch.randn(4, 5)
        expected = 0.5 * (a @ b) - 2 * c
        ref = [BufferRef(slot) for slot in (1, 0, 2)]
        call = GemmCall(f32, False, False, 5, 4, 3, 5, 3, 5, *ref, alpha=0.5, beta=-2.0)
        run(build_sequence([call]), a, b, c, threads=1)
        torch.testing.assert_close(c, expected)

    def test_a_dtype_without_blas_is_an_error(self):
        call = GemmCall(torch.bfloat16, False, False, 1, 1, 1, 1, 1, 1, BufferRef(0), BufferRef(0), BufferRef(0))
        with pytest.raises(BackendError, match="bfloat16"):
            build_sequence([call])


def test_timestamps_frame_every_step():
    x, y = torch.randn(64, 100), torch.zeros(64)
    kernel = compiled(row_reduce("sum", 64, 100))
    sequence = build_sequence([KernelCall(kernel, (0, 1))] * 3)
    stamps = (ctypes.c_int64 * 4)()
    before = time.monotonic_ns()
    table = (ctypes.c_int64 * 2)(x.data_ptr(), y.data_ptr())
    sequence.run_timed(ctypes.addressof(table), 2, ctypes.addressof(stamps))
    after = time.monotonic_ns()
    assert before <= stamps[0] <= stamps[1] <= stamps[2] <= stamps[3] <= after
    torch.testing.assert_close(y, x.sum(-1))


@pytest.mark.parametrize("threads", sorted({False, has_threads()}))
def test_the_driver_compiles_with_and_without_a_thread_library(threads):
    text = driver_text(threads)
    assert ("GOMP_parallel" in text) is threads
    module = compile_module(text, host_target())
    assert module.address("run") and module.address("run_timed")


def test_the_driver_without_threads_runs_every_work_item():
    module = compile_module(driver_text(threads=False), host_target())
    kernel = doubled(5000)
    words = [module.address("kernel_step"), 10, kernel.address, kernel.work_items, 8, 2, 0, 0, 1, 0]
    steps = (ctypes.c_int64 * len(words))(*words)
    native = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p, ctypes.c_int64] * 2)(module.address("run"))
    x, y = torch.randn(5000), torch.zeros(5000)
    table = (ctypes.c_int64 * 2)(x.data_ptr(), y.data_ptr())
    native(ctypes.addressof(steps), 1, ctypes.addressof(table), 4)
    assert torch.equal(y, 2 * x)
