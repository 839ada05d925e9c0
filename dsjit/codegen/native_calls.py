"""The calls of a native sequence that run a kernel, or do what a plan for a library node says, and those of Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any, Final, Protocol

from torch._ops import OpOverload

from dsjit.codegen.gemm import MatmulPlan
from dsjit.codegen.llvm.engine import CompiledKernel
from dsjit.codegen.llvm.executor import BufferRef, Call, DeviceKernel, GemmCall, KernelCall
from dsjit.codegen.llvm.random_masks import draw_mask_natively
from dsjit.codegen.steps import NativePlan
from dsjit.codegen.templates.operand import Operand
from dsjit.codegen.templates.rows import AddRowsPlan
from dsjit.fusion.lower import FusedKernel
from dsjit.ir.graph import Value
from dsjit.ir.kernel import has_checks
from dsjit.ops.library import fast_callable
from dsjit.ops.masks import draw_mask

__all__ = ["Slots", "kernel_call", "library_callable", "native_call", "refuse"]


class Slots(Protocol):
    """Positions in the table of addresses."""

    def slot(self, value: Value) -> int:
        """Of a buffer."""
        ...

    def zero(self) -> int:
        """Of a 0."""
        ...

    def flag(self) -> int:
        """Of the address of an int64 that a call sets to 1 to refuse the run."""
        ...


def kernel_call(
    fused: FusedKernel, kernel: CompiledKernel | DeviceKernel, sizes: tuple[int, ...], slots: Slots
) -> KernelCall:
    """kernel: the machine code. sizes: the values of the sizes that it takes."""
    places = [slots.slot(value) for value in fused.values]
    if has_checks(fused.kernel) and not isinstance(kernel, DeviceKernel):  # another device asserts by itself
        places.append(slots.flag())
    return KernelCall(kernel, tuple(places), sizes=sizes, zero=slots.zero() if sizes else 0)


def native_call(plan: NativePlan, kernel: CompiledKernel | DeviceKernel | None, slots: Slots) -> Call:
    """kernel: of the plan's template, if it has one."""

    def ref(operand: Operand) -> BufferRef:
        return BufferRef(slots.slot(operand.base), operand.offset * operand.base.type.dtype.itemsize)

    if isinstance(plan, MatmulPlan):
        a, b, c = (slots.slot(matrix.base) for matrix in (plan.a, plan.b, plan.c))
        return GemmCall.row_major(plan, (a, b, c))
    assert kernel is not None
    refs = [ref(operand) for operand in plan.operands]
    places, offsets = [each.slot for each in refs], [each.offset for each in refs]
    if isinstance(plan, AddRowsPlan):
        places.append(slots.flag())
        offsets.append(0)
    return KernelCall(kernel, tuple(places), tuple(offsets), astuple(plan.sizes), slots.zero())


_NATIVE_ENTRIES: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {draw_mask: draw_mask_natively}
"""Functions of machine code for ops that are plain functions."""


def library_callable(op: Callable[..., Any]) -> Callable[..., Any]:
    """What a Program calls for a library node: the quickest that does what `op` does."""
    return fast_callable(op) if isinstance(op, OpOverload) else _NATIVE_ENTRIES.get(op, op)


def refuse(table: memoryview, flag: int) -> None:
    """Raise IndexError: a native step set the flag, which is taken down."""
    table[flag] = 0
    raise IndexError("an index is out of range")
