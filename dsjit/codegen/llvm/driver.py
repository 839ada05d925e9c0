"""The native driver: runs a sequence of encoded steps with one call, with no Python in between.

It is itself LLVM IR, compiled once per process. A step is a row of 64-bit words, the first of which is the address of
the function that runs such steps:

    step   ::= runner  length in words  ...
    kernel ::= function  work items  threads at most  number of args  (slot  byte offset)*
    gemm   ::= function  function for batches  batch  threads at most  transa transb m n k lda ldb ldc alpha beta
               (slot  byte offset  bytes from one matrix of the batch to the next) for each of a, b, c

Work that is worth threads is started on all threads that the caller grants, though some may find nothing to do: GNU's
runtime ends the threads that a smaller team leaves over, and starting them again takes tens of microseconds.

A slot is a position in the table of addresses that the caller passes. BLAS takes its arguments by reference: they are
read from the words where they lie (their lower bytes, on the little-endian machines that torch supports). The function
for batches, where there is one, is MKL's `?gemm_batch` (oneMKL reference, BLAS-like extensions), which shares small
products among threads better than one call for each does; each call takes one group of them.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from dsjit.codegen.llvm.engine import CompiledModule, compile_module
from dsjit.codegen.llvm.symbols import native_symbol
from dsjit.codegen.llvm.target import host_target
from dsjit.once import once

__all__ = ["Driver", "driver", "driver_text", "has_threads"]


@dataclass(frozen=True, slots=True)
class Driver:
    """The compiled driver.

    run: `run(steps, number of steps, table address, threads)`.
    run_timed: as `run`, with the address of (number of steps + 1) int64: ns on the monotonic clock, before the first
        step and after each.
    kernel_step, gemm_step: what the first word of such a step holds.
    """

    run: Callable[[Any, int, int, int], None]
    run_timed: Callable[[Any, int, int, int, int], None]
    kernel_step: int
    gemm_step: int
    module: CompiledModule


def has_threads() -> bool:
    """Whether the OpenMP runtime that torch uses has the entry that the driver calls (GNU's, or a compatible one)."""
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    return all(native_symbol(name) is not None for name in names)


@once
def driver() -> Driver:
    """The driver of this process. Raises BackendError when LLVM cannot compile it."""
    module = compile_module(driver_text(has_threads()), host_target(), optimise=False)
    pointer, word = ctypes.c_void_p, ctypes.c_int64
    run = ctypes.CFUNCTYPE(None, pointer, word, pointer, word)(module.address("run"))
    run_timed = ctypes.CFUNCTYPE(None, pointer, word, pointer, word, pointer)(module.address("run_timed"))
    kernel, gemm = (module.address(f"{kind}_step") for kind in ("kernel", "gemm"))
    return Driver(run, run_timed, kernel, gemm, module)


def driver_text(threads: bool) -> str:
    """The module. threads: whether to call the OpenMP runtime; without it every step runs in the calling thread."""
    return _COMMON + (_PARALLEL if threads else _SERIAL) + _loop("run", "") + _loop("run_timed", ", ptr %stamps")


def _loop(name: str, timed: str) -> str:
    stamp = (
        """  %stamp{0} = getelementptr i64, ptr %stamps, i64 {1}
  call void @stamp(ptr %stamp{0})
"""
        if timed
        else ""
    )
    return f"""
define void @{name}(ptr %steps, i64 %count, ptr %table, i64 %threads{timed}) nounwind {{
entry:
{stamp.format(0, 0)}  %some = icmp sgt i64 %count, 0
  br i1 %some, label %loop, label %done
loop:
  %number = phi i64 [ 0, %entry ], [ %following, %loop ]
  %step = phi ptr [ %steps, %entry ], [ %next, %loop ]
  %runner = load ptr, ptr %step
  call void %runner(ptr %step, ptr %table, i64 %threads)
  %following = add i64 %number, 1
{stamp.format(1, "%following")}  %lengthp = getelementptr i64, ptr %step, i64 1
  %length = load i64, ptr %lengthp
  %next = getelementptr i64, ptr %step, i64 %length
  %more = icmp slt i64 %following, %count
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""


def _words(*names: str, step: str = "%step") -> str:
    """Loads the words of a step, from the third on, as i64 registers of these names."""
    lines = []
    for position, name in enumerate(names, start=2):
        lines.append(f"  %{name}.p = getelementptr i64, ptr {step}, i64 {position}")
        lines.append(f"  %{name} = load i64, ptr %{name}.p")
    return "\n".join(lines)


def _address(name: str, slot: str, offset: str) -> str:
    """%name = table[slot] + offset."""
    return f"""  %{name}.slot = getelementptr i64, ptr %table, i64 {slot}
  %{name}.base = load ptr, ptr %{name}.slot
  %{name} = getelementptr i8, ptr %{name}.base, i64 {offset}"""


_GEMM_WORDS: Final = [
    "function", "batched", "batch", "useful", "transa", "transb", "m", "n", "k", "lda", "ldb", "ldc", "alpha", "beta",
    "a.where", "a.shift", "a.stride", "b.where", "b.shift", "b.stride", "c.where", "c.shift", "c.stride",
]  # fmt: skip


def _gemm_task() -> str:
    """Loads the words of a product, and the addresses of its matrices, from a task."""
    lines = ["  %step = load ptr, ptr %task", _words(*_GEMM_WORDS)]
    for position, matrix in enumerate("abc", start=1):
        lines.append(f"  %task.{matrix} = getelementptr i64, ptr %task, i64 {position}")
        lines.append(f"  %{matrix} = load ptr, ptr %task.{matrix}")
    return "\n".join(lines)


def _matrices() -> str:
    """%a.here, %b.here, %c.here = the matrices of product %number of the batch."""
    lines = []
    for matrix in "abc":
        lines.append(f"  %{matrix}.far = mul i64 %number, %{matrix}.stride")
        lines.append(f"  %{matrix}.here = getelementptr i8, ptr %{matrix}, i64 %{matrix}.far")
    return "\n".join(lines)


_GROUP: Final = 256
"""Products of one call of the function for batches: their addresses are on the stack."""

_COMMON: Final = f"""
declare i32 @clock_gettime(i32, ptr)

define internal void @stamp(ptr %to) nounwind {{
  %time = alloca [2 x i64]
  %status = call i32 @clock_gettime(i32 {time.CLOCK_MONOTONIC if sys.platform != "win32" else 1}, ptr %time)
  %seconds = load i64, ptr %time
  %fraction.p = getelementptr i64, ptr %time, i64 1
  %fraction = load i64, ptr %fraction.p
  %whole = mul i64 %seconds, 1000000000
  %total = add i64 %whole, %fraction
  store i64 %total, ptr %to
  ret void
}}

define void @kernel_step(ptr %step, ptr %table, i64 %threads) nounwind {{
entry:
{_words("function", "items", "useful", "count")}
  %args = alloca i64, i64 %count
  %pairs = getelementptr i64, ptr %step, i64 6
  %some = icmp sgt i64 %count, 0
  br i1 %some, label %gather, label %gathered
gather:
  %number = phi i64 [ 0, %entry ], [ %following, %gather ]
  %position = mul i64 %number, 2
  %where.p = getelementptr i64, ptr %pairs, i64 %position
  %where = load i64, ptr %where.p
  %shift.p = getelementptr i64, ptr %where.p, i64 1
  %shift = load i64, ptr %shift.p
{_address("address", "%where", "%shift")}
  %arg = getelementptr ptr, ptr %args, i64 %number
  store ptr %address, ptr %arg
  %following = add i64 %number, 1
  %more = icmp slt i64 %following, %count
  br i1 %more, label %gather, label %gathered
gathered:
  %task = alloca [3 x i64]
  store i64 %function, ptr %task
  %task.args = getelementptr i64, ptr %task, i64 1
  store ptr %args, ptr %task.args
  %task.items = getelementptr i64, ptr %task, i64 2
  store i64 %items, ptr %task.items
  call void @spread(ptr @kernel_range, ptr %task, i64 %items, i64 %useful, i64 %threads)
  ret void
}}

define internal void @kernel_range(ptr %task, i64 %begin, i64 %end) nounwind {{
  %function = load ptr, ptr %task
  %args.p = getelementptr i64, ptr %task, i64 1
  %args = load ptr, ptr %args.p
  call void %function(ptr %args, i64 %begin, i64 %end)
  ret void
}}

define void @gemm_step(ptr %step, ptr %table, i64 %threads) nounwind {{
{_words(*_GEMM_WORDS)}
{_address("a", "%a.where", "%a.shift")}
{_address("b", "%b.where", "%b.shift")}
{_address("c", "%c.where", "%c.shift")}
  %task = alloca [4 x i64]
  store ptr %step, ptr %task
  %task.a = getelementptr i64, ptr %task, i64 1
  store ptr %a, ptr %task.a
  %task.b = getelementptr i64, ptr %task, i64 2
  store ptr %b, ptr %task.b
  %task.c = getelementptr i64, ptr %task, i64 3
  store ptr %c, ptr %task.c
  %several = icmp sgt i64 %batch, 1
  %known = icmp ne i64 %batched, 0
  %together = and i1 %several, %known
  br i1 %together, label %batches, label %single
single:
  call void @spread(ptr @gemm_range, ptr %task, i64 %batch, i64 %useful, i64 %threads)
  ret void
batches:
  call void @gemm_batches(ptr %task)
  ret void
}}

define internal void @gemm_batches(ptr %task) nounwind {{
entry:
{_gemm_task()}
  %blas = inttoptr i64 %batched to ptr
  %as = alloca [{_GROUP} x ptr]
  %bs = alloca [{_GROUP} x ptr]
  %cs = alloca [{_GROUP} x ptr]
  %groups = alloca i64
  store i64 1, ptr %groups
  %size = alloca i64
  br label %group
group:
  %begin = phi i64 [ 0, %entry ], [ %end, %call ]
  %left = sub i64 %batch, %begin
  %most = icmp slt i64 %left, {_GROUP}
  %members = select i1 %most, i64 %left, i64 {_GROUP}
  %end = add i64 %begin, %members
  store i64 %members, ptr %size
  br label %fill
fill:
  %member = phi i64 [ 0, %group ], [ %following, %fill ]
  %number = add i64 %begin, %member
{_matrices()}
  %a.slot = getelementptr ptr, ptr %as, i64 %member
  store ptr %a.here, ptr %a.slot
  %b.slot = getelementptr ptr, ptr %bs, i64 %member
  store ptr %b.here, ptr %b.slot
  %c.slot = getelementptr ptr, ptr %cs, i64 %member
  store ptr %c.here, ptr %c.slot
  %following = add i64 %member, 1
  %more = icmp slt i64 %following, %members
  br i1 %more, label %fill, label %call
call:
  call void %blas(ptr %transa.p, ptr %transb.p, ptr %m.p, ptr %n.p, ptr %k.p, ptr %alpha.p, ptr %as, ptr %lda.p,
                  ptr %bs, ptr %ldb.p, ptr %beta.p, ptr %cs, ptr %ldc.p, ptr %groups, ptr %size)
  %rest = icmp slt i64 %end, %batch
  br i1 %rest, label %group, label %done
done:
  ret void
}}

define internal void @gemm_range(ptr %task, i64 %begin, i64 %end) nounwind {{
entry:
{_gemm_task()}
  %blas = inttoptr i64 %function to ptr
  br label %loop
loop:
  %number = phi i64 [ %begin, %entry ], [ %following, %loop ]
{_matrices()}
  call void %blas(ptr %transa.p, ptr %transb.p, ptr %m.p, ptr %n.p, ptr %k.p, ptr %alpha.p, ptr %a.here, ptr %lda.p,
                  ptr %b.here, ptr %ldb.p, ptr %beta.p, ptr %c.here, ptr %ldc.p)
  %following = add i64 %number, 1
  %more = icmp slt i64 %following, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""

_SERIAL: Final = """
define internal void @spread(ptr %body, ptr %task, i64 %items, i64 %useful, i64 %threads) nounwind {
  %some = icmp sgt i64 %items, 0
  br i1 %some, label %work, label %done
work:
  call void %body(ptr %task, i64 0, i64 %items)
  br label %done
done:
  ret void
}
"""

_PARALLEL: Final = """
declare void @GOMP_parallel(ptr, ptr, i32, i32)
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()

define internal void @spread(ptr %body, ptr %task, i64 %items, i64 %useful, i64 %threads) nounwind {
  %some = icmp sgt i64 %items, 0
  br i1 %some, label %work, label %done
work:
  %fewer = icmp slt i64 %threads, %useful
  %team = select i1 %fewer, i64 %threads, i64 %useful
  %alone = icmp slt i64 %team, 2
  br i1 %alone, label %serial, label %parallel
serial:
  call void %body(ptr %task, i64 0, i64 %items)
  br label %done
parallel:
  %share = alloca [4 x i64]
  store ptr %body, ptr %share
  %share.task = getelementptr i64, ptr %share, i64 1
  store ptr %task, ptr %share.task
  %share.items = getelementptr i64, ptr %share, i64 2
  store i64 %items, ptr %share.items
  %share.useful = getelementptr i64, ptr %share, i64 3
  store i64 %useful, ptr %share.useful
  %size = trunc i64 %threads to i32
  call void @GOMP_parallel(ptr @take_share, ptr %share, i32 %size, i32 0)
  br label %done
done:
  ret void
}

define internal void @take_share(ptr %share) nounwind {
  %body = load ptr, ptr %share
  %share.task = getelementptr i64, ptr %share, i64 1
  %task = load ptr, ptr %share.task
  %share.items = getelementptr i64, ptr %share, i64 2
  %items = load i64, ptr %share.items
  %me32 = call i32 @omp_get_thread_num()
  %all32 = call i32 @omp_get_num_threads()
  %me = zext i32 %me32 to i64
  %present = zext i32 %all32 to i64
  %share.useful = getelementptr i64, ptr %share, i64 3
  %useful = load i64, ptr %share.useful
  %few = icmp slt i64 %present, %useful
  %all = select i1 %few, i64 %present, i64 %useful
  %needed = icmp slt i64 %me, %all
  br i1 %needed, label %divide, label %done
divide:
  %next = add i64 %me, 1
  %begin.n = mul i64 %items, %me
  %begin = udiv i64 %begin.n, %all
  %end.n = mul i64 %items, %next
  %end = udiv i64 %end.n, %all
  %some = icmp slt i64 %begin, %end
  br i1 %some, label %work, label %done
work:
  call void %body(ptr %task, i64 %begin, i64 %end)
  br label %done
done:
  ret void
}
"""
