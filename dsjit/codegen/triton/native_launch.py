"""Launches a row of kernels with one call: native code between the driver's function and the table of addresses.

A launch from Python costs microseconds, as much as a small kernel takes. So the loop over launches is LLVM IR, compiled
once per process. A launch is a row of 64-bit words:

    launch ::= length in words  function  programs  threads  shared bytes  parameters
               number of buffers  (slot  byte offset)*  number of sizes  size*

Its arguments lie on the stack while the driver's function runs, which copies them before it returns (CUDA Driver API,
cuLaunchKernel, CU_LAUNCH_PARAM_BUFFER_POINTER): addresses, sizes, and zeros for the parameters that Triton adds. So
any number of threads may launch at once. Before the first launch, all addresses are looked at.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from dsjit.codegen.llvm.engine import CompiledModule, compile_module
from dsjit.codegen.llvm.target import host_target
from dsjit.codegen.triton.launch import ALIGNMENT, Launch
from dsjit.once import once

__all__ = ["NativeBatch", "Stop", "launcher_text"]

_ALL_DONE: Final = -1
_MISALIGNED: Final = -2

# From cuda.h.
_PARAM_END: Final = 0
_PARAM_BUFFER_POINTER: Final = 1
_PARAM_BUFFER_SIZE: Final = 2


@dataclass(frozen=True, slots=True)
class Stop:
    """Launch `number` was not done, as the driver returned `status`; None when nothing was, for want of alignment."""

    number: int
    status: int | None


class NativeBatch:
    """Launches that are done by native code. function: the address of the driver's `cuLaunchKernel`."""

    __slots__ = ("_function", "_kept", "_launch", "_room", "_starts", "_words")

    def __init__(self, launches: Sequence[Launch], function: int) -> None:
        rows = [_encoded(launch) for launch in launches]
        words = [word for row in rows for word in row]
        self._words = (ctypes.c_int64 * max(len(words), 1))(*words)
        self._starts = tuple(accumulate([8 * len(row) for row in rows], initial=ctypes.addressof(self._words)))
        self._room = max([launch.variant.code.parameters for launch in launches], default=1)
        self._launch = _launcher().launch
        self._function, self._kept = function, tuple(launches)

    def run(self, table: int, stream: int, first: int = 0, aligned: int = ALIGNMENT) -> Stop | None:
        """Do the launches from `first` on; None when all are done. table: its address. aligned: what all addresses have
        to be multiples of."""
        count = len(self._kept) - first
        left = self._launch(self._starts[first], count, self._room, table, stream, self._function, aligned - 1)
        if left == _ALL_DONE:
            return None
        return Stop(first, None) if left == _MISALIGNED else Stop(first + (left >> 32), left & 0xFFFFFFFF)


def _encoded(launch: Launch) -> list[int]:
    code = launch.variant.code
    row = [launch.variant.function, launch.programs, code.threads, code.shared, code.parameters, len(launch.slots)]
    row += [word for pair in zip(launch.slots, launch.offsets, strict=True) for word in pair]
    row += [len(launch.sizes), *launch.sizes]
    return [len(row) + 1, *row]


@dataclass(frozen=True, slots=True)
class _Launcher:
    launch: Callable[..., int]
    module: CompiledModule


@once
def _launcher() -> _Launcher:
    module = compile_module(launcher_text(), host_target(), optimise=False)
    pointer, word = ctypes.c_void_p, ctypes.c_int64
    signature: Any = ctypes.CFUNCTYPE(word, pointer, word, word, pointer, pointer, pointer, word)
    return _Launcher(signature(module.address("launch")), module)


_FIELDS: Final = ("length", "kernel", "programs", "threads", "shared", "parameters", "buffers")


_ADDRESS: Final = """\
  %position = mul i64 %buffer, 2
  %slot.p = getelementptr i64, ptr %pairs, i64 %position
  %slot = load i64, ptr %slot.p
  %offset.p = getelementptr i64, ptr %slot.p, i64 1
  %offset = load i64, ptr %offset.p
  %base.p = getelementptr i64, ptr %table, i64 %slot
  %base = load i64, ptr %base.p
  %address = add i64 %base, %offset"""
"""Of buffer %buffer of the launch."""


def launcher_text() -> str:
    """The module: `launch(launches, number of them, most parameters, table, stream, function, mask)`, which returns -1,
    or the number of the launch that was not done times 2^32, and why; -2 when an address has a bit of `mask`."""
    fields = "\n".join(
        f"  %{name}.p = getelementptr i64, ptr %row, i64 {position}\n  %{name} = load i64, ptr %{name}.p"
        for position, name in enumerate(_FIELDS)
    )
    narrow = "\n".join(f"  %{name}.32 = trunc i64 %{name} to i32" for name in ("programs", "threads", "shared"))
    extra = [f"inttoptr (i64 {_PARAM_BUFFER_POINTER} to ptr)", "%args", f"inttoptr (i64 {_PARAM_BUFFER_SIZE} to ptr)",
             "%size", f"inttoptr (i64 {_PARAM_END} to ptr)"]  # fmt: skip
    stores = "\n".join(
        f"  %extra.{n} = getelementptr ptr, ptr %extra, i64 {n}\n  store ptr {value}, ptr %extra.{n}"
        for n, value in enumerate(extra)
    )
    return f"""
define internal i64 @bits(ptr %rows, i64 %count, ptr %table) nounwind {{
entry:
  %some = icmp sgt i64 %count, 0
  br i1 %some, label %row.begin, label %done
row.begin:
  %number = phi i64 [ 0, %entry ], [ %next, %row.end ]
  %row = phi ptr [ %rows, %entry ], [ %row.next, %row.end ]
  %before = phi i64 [ 0, %entry ], [ %after, %row.end ]
{fields}
  %pairs = getelementptr i64, ptr %row, i64 {len(_FIELDS)}
  br label %buffer.begin
buffer.begin:
  %buffer = phi i64 [ 0, %row.begin ], [ %buffer.next, %gather ]
  %after = phi i64 [ %before, %row.begin ], [ %bits, %gather ]
  %more = icmp slt i64 %buffer, %buffers
  br i1 %more, label %gather, label %row.end
gather:
{_ADDRESS}
  %bits = or i64 %after, %address
  %buffer.next = add i64 %buffer, 1
  br label %buffer.begin
row.end:
  %next = add i64 %number, 1
  %row.next = getelementptr i64, ptr %row, i64 %length
  %rows.more = icmp slt i64 %next, %count
  br i1 %rows.more, label %row.begin, label %done
done:
  %all = phi i64 [ 0, %entry ], [ %after, %row.end ]
  ret i64 %all
}}

define i64 @launch(ptr %rows, i64 %count, i64 %room, ptr %table, ptr %stream, ptr %function, i64 %mask) nounwind {{
entry:
  %all = call i64 @bits(ptr %rows, i64 %count, ptr %table)
  %low = and i64 %all, %mask
  %odd = icmp ne i64 %low, 0
  br i1 %odd, label %misaligned, label %begin
begin:
  %args = alloca i64, i64 %room
  %size = alloca i64
  %extra = alloca [5 x ptr]
{stores}
  %some = icmp sgt i64 %count, 0
  br i1 %some, label %row.begin, label %done
row.begin:
  %number = phi i64 [ 0, %begin ], [ %next, %row.end ]
  %row = phi ptr [ %rows, %begin ], [ %row.next, %row.end ]
{fields}
  %pairs = getelementptr i64, ptr %row, i64 {len(_FIELDS)}
  br label %buffer.begin
buffer.begin:
  %buffer = phi i64 [ 0, %row.begin ], [ %buffer.next, %gather ]
  %buffer.more = icmp slt i64 %buffer, %buffers
  br i1 %buffer.more, label %gather, label %gathered
gather:
{_ADDRESS}
  %arg = getelementptr i64, ptr %args, i64 %buffer
  store i64 %address, ptr %arg
  %buffer.next = add i64 %buffer, 1
  br label %buffer.begin
gathered:
  %sizes.at = mul i64 %buffers, 2
  %sizes.p = getelementptr i64, ptr %pairs, i64 %sizes.at
  %sizes = load i64, ptr %sizes.p
  %taken = add i64 %buffers, %sizes
  br label %rest
rest:
  %place = phi i64 [ %buffers, %gathered ], [ %place.next, %rest.set ]
  %open = icmp slt i64 %place, %parameters
  br i1 %open, label %rest.value, label %call
rest.value:
  %given = icmp slt i64 %place, %taken
  br i1 %given, label %rest.size, label %rest.set
rest.size:
  %index = sub i64 %place, %buffers
  %index.1 = add i64 %index, 1
  %value.p = getelementptr i64, ptr %sizes.p, i64 %index.1
  %value = load i64, ptr %value.p
  br label %rest.set
rest.set:
  %word = phi i64 [ 0, %rest.value ], [ %value, %rest.size ]
  %place.p = getelementptr i64, ptr %args, i64 %place
  store i64 %word, ptr %place.p
  %place.next = add i64 %place, 1
  br label %rest
call:
  %nbytes = mul i64 %parameters, 8
  store i64 %nbytes, ptr %size
{narrow}
  %handle = inttoptr i64 %kernel to ptr
  %status = call i32 %function(ptr %handle, i32 %programs.32, i32 1, i32 1, i32 %threads.32, i32 1, i32 1,
                               i32 %shared.32, ptr %stream, ptr null, ptr %extra)
  %failed = icmp ne i32 %status, 0
  br i1 %failed, label %stopped, label %row.end
row.end:
  %next = add i64 %number, 1
  %row.next = getelementptr i64, ptr %row, i64 %length
  %more = icmp slt i64 %next, %count
  br i1 %more, label %row.begin, label %done
stopped:
  %status.64 = zext i32 %status to i64
  %high = shl i64 %number, 32
  %left = or i64 %high, %status.64
  ret i64 %left
misaligned:
  ret i64 {_MISALIGNED}
done:
  ret i64 {_ALL_DONE}
}}
"""
