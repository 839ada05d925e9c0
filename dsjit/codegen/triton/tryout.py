"""Tries out whether kernels on a device are launched as they were compiled to be.

What a compiled kernel takes beside its own arguments is Triton's to decide, and changes from version to version; a
launch that passes something else gives wrong numbers rather than an error. So a machine is used only once one small
kernel has given the right ones.
"""

from __future__ import annotations

import ctypes
from typing import Final

import torch
import triton

from dsjit.codegen.llvm.executor import KernelCall
from dsjit.codegen.triton.launch import build_launches
from dsjit.codegen.triton.machine import GpuMachine
from dsjit.errors import BackendError
from dsjit.ir.kernel import Apply, Axis, Block, Index, Kernel, Load, Param, Reduce, SizeParam, Store

__all__ = ["check_launches"]

_ROWS: Final = 40
_COLUMNS: Final = 600
"""More than the threads of a program: they exchange their sums through shared memory."""


def check_launches(machine: GpuMachine) -> None:
    """Raises BackendError when a kernel of several buffers and open sizes gives other numbers than it should."""
    rows, columns = _ROWS, _COLUMNS
    x = torch.arange(rows * columns, dtype=torch.float32).remainder(17)
    w = torch.arange(columns, dtype=torch.float32).remainder(5)
    products = x.view(rows, columns) * w
    expected = (products.flatten(), products.sum(-1))
    with machine.device_guard():
        given = [tensor.to(machine.device) for tensor in (x, w)]
        given += [torch.zeros_like(tensor, device=machine.device) for tensor in expected]
        (kernel,) = machine.kernels.compile_kernels([_kernel()], False).kernels
        table = (ctypes.c_int64 * len(given))(*[tensor.data_ptr() for tensor in given])
        call = KernelCall(kernel, tuple(range(len(given))), sizes=(rows, columns))
        build_launches([call]).run(ctypes.addressof(table), 1)
        found = [tensor.cpu() for tensor in given[2:]]
    if not all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)):
        raise BackendError(
            f"a kernel that was tried out on {machine.device} gave wrong numbers: dsjit does not know how to launch "
            f"what Triton {triton.__version__} compiles here, and makes no kernels for this device"
        )


def _kernel() -> Kernel:
    """y = x * w for each row of x, and the sums of these rows; all numbers are integers that float32 holds."""
    f32, rows, columns = torch.float32, SizeParam("rows", _ROWS), SizeParam("columns", _COLUMNS)
    here = Index(0, (("i", columns), ("j", 1)))
    body = (
        Load("a", "x", here, f32),
        Load("b", "w", Index(0, (("j", 1),)), f32),
        Apply("c", "mul", ("a", "b"), f32),
        Store("y", here, "c"),
        Reduce("t", "sum", "c", f32),
    )
    params = (*[Param(name, f32, "read") for name in "xw"], *[Param(name, f32, "write") for name in "ys"])
    last = Block((), (Store("s", Index(0, (("i", 1),)), "t"),))
    blocks = (Block((Axis("j", columns),), body), last)
    return Kernel("tried_out", params, (Axis("i", rows),), blocks, "j", sizes=(rows, columns))
