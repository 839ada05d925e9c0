"""The last lanes of a row are stored, and not a byte beyond them."""

from __future__ import annotations

import numpy
import pytest
import torch

from dsjit.codegen.llvm.engine import KernelCache
from dsjit.codegen.llvm.executor import KernelCall, build_sequence
from dsjit.ir.kernel import Apply, Axis, Block, Cast, Index, Kernel, Load, Param, Stmt, Store

SENTINEL = 0x5A


def halved_row(dtype: torch.dtype, size: int) -> Kernel:
    """y[j] = x[j] + x[j], computed in float32 and converted to `dtype`."""
    at = Index(0, (("j0", 1),))
    body: tuple[Stmt, ...] = (
        Load("a", "x", at, torch.float32),
        Apply("b", "add", ("a", "a"), torch.float32),
        Cast("c", "b", dtype),
        Store("y", at, "c"),
    )
    params = (Param("x", torch.float32, "read"), Param("y", dtype, "write"))
    return Kernel("halved_row", params, (), (Block((Axis("j0", size),), body),), "j0")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int16, torch.bool])
def test_a_tail_store_leaves_the_bytes_behind_it_alone(dtype: torch.dtype) -> None:
    cache = KernelCache()
    sizes = range(1, 36)
    kernels = cache.compile_kernels([halved_row(dtype, size) for size in sizes]).kernels
    for size, kernel in zip(sizes, kernels, strict=True):
        x = torch.arange(1, size + 1, dtype=torch.float32)
        memory = numpy.full(size * dtype.itemsize + 64, SENTINEL, dtype=numpy.uint8)
        table = numpy.array([x.data_ptr(), memory.ctypes.data], dtype=numpy.int64)
        build_sequence([KernelCall(kernel, (0, 1))]).run(table.ctypes.data, 1)
        written = torch.from_numpy(memory[: size * dtype.itemsize].copy()).view(dtype)
        assert torch.equal(written, (x + x).to(dtype)), size
        assert (memory[size * dtype.itemsize :] == SENTINEL).all(), size
