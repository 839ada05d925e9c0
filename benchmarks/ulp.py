"""Errors of the vector math in units in the last place, beside eager PyTorch's: `python -m benchmarks.ulp`.

    python -m benchmarks.ulp                    every float32 function on a sample of 2**22 encodings
    python -m benchmarks.ulp --op exp --all     exp on all 2**32 encodings (some ten minutes on one core)
    python -m benchmarks.ulp --speed            nanoseconds per element in L1, inlined beside Sleef

The reference is float64 arithmetic (torch's), whose own error is below 2**-28 of a float32 ulp. The ulp of
a number is the distance between the two floats around it; below 2**-126 that is 2**-149, above the largest float it
is 2**104, and infinity counts as 2**128.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dsjit.codegen.llvm.builder import FunctionBuilder
from dsjit.codegen.llvm.math import INLINE, MATH, Emitter
from dsjit.codegen.llvm.math.library import call_library
from dsjit.codegen.llvm.target import Target, host_target

__all__ = ["REFERENCE", "Elementwise", "compile_elementwise", "elementwise_ir", "object_code", "sample", "ulp_error"]

FloatArray = npt.NDArray[Any]

REFERENCE: Final[dict[str, Callable[..., torch.Tensor]]] = {name: getattr(torch, name) for name in MATH}
"""Each function on torch tensors: the reference in float64, eager PyTorch in float32."""

ELEMENTS: Final = {"float": np.float32, "double": np.float64}


def elementwise_ir(emitter: Emitter, target: Target, arity: int, lanes: int, element: str = "float") -> str:
    """LLVM IR of `void apply(ptr in0, ..., ptr out, i64 n)`, which applies `emitter` to n elements, `lanes` at a time.

    n is a multiple of `lanes` (1: scalar operands).
    """
    type_ = f"<{lanes} x {element}>" if lanes > 1 else element
    align = np.dtype(ELEMENTS[element]).itemsize
    builder = FunctionBuilder()
    args = []
    for index in range(arity):
        address = builder.assign("ptr", f"getelementptr {element}, ptr %in{index}, i64 %i")
        args.append(builder.assign(type_, f"load {type_}, {address}, align {align}"))
    result = emitter(builder, target, args)
    address = builder.assign("ptr", f"getelementptr {element}, ptr %out, i64 %i")
    builder.emit(f"store {result}, {address}, align {align}")
    params = ", ".join([f"ptr noalias %in{index}" for index in range(arity)] + ["ptr noalias %out", "i64 %n"])
    body = "\n".join(builder.lines)
    declarations = "\n".join(builder.declarations.values())
    return f"""target triple = "{target.triple}"
{declarations}
define void @apply({params}) {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
{body}
  %next = add i64 %i, {lanes}
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""


def target_machine(target: Target) -> llvm.TargetMachine:
    """LLVM's back end for `target`, which need not be this machine."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, jit=True, codemodel="jitdefault"
    )


def object_code(ir: str, target: Target) -> bytes:
    """Machine code of a module for `target`. Raises RuntimeError when LLVM rejects the text."""
    module = llvm.parse_assembly(ir)
    module.verify()
    code: bytes = target_machine(target).emit_object(module)
    return code


@dataclass(frozen=True, slots=True)
class Elementwise:
    """Machine code that applies a function to arrays of one length."""

    function: Callable[..., None]
    lanes: int
    dtype: npt.DTypeLike
    engine: llvm.ExecutionEngine
    """Owns the machine code."""

    def __call__(self, *arrays: FloatArray) -> FloatArray:
        """The function of as many numpy arrays; the last vector is padded."""
        length = len(arrays[0])
        padded = -(-length // self.lanes) * self.lanes
        inputs = [np.resize(np.ascontiguousarray(array, self.dtype), padded) for array in arrays]
        out = np.empty(padded, self.dtype)
        self.function(*[array.ctypes.data for array in (*inputs, out)], padded)
        return out[:length]


def compile_elementwise(
    emitter: Emitter, target: Target, arity: int, lanes: int, element: str = "float"
) -> Elementwise:
    """`emitter` compiled for this process, on operands of `lanes` lanes."""
    llvm.load_library_permanently(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    module = llvm.parse_assembly(elementwise_ir(emitter, target, arity, lanes, element))
    module.verify()
    engine = llvm.create_mcjit_compiler(module, target_machine(target))
    engine.finalize_object()
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (arity + 1), ctypes.c_int64)
    return Elementwise(signature(engine.get_function_address("apply")), lanes, ELEMENTS[element], engine)


def sample(count: int) -> npt.NDArray[np.float32]:
    """Floats of all magnitudes: `count` equally spaced encodings, and 64 around every power of two and half-way."""
    spaced = np.linspace(0, 2**32 - 1, count).astype(np.uint32)
    exponents = np.arange(512, dtype=np.int64) << 23
    offsets = np.arange(-32, 32, dtype=np.int64)
    edges = np.concatenate([exponents, exponents + (1 << 22)])[:, None] + offsets[None, :]
    return np.concatenate([spaced, (edges.ravel() % 2**32).astype(np.uint32)]).view(np.float32)


def ulp_error(got: npt.NDArray[np.float32], reference: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """|got - reference| in float32 ulps of the reference; infinite where one is NaN and the other is not."""
    exponent = np.clip(np.frexp(reference)[1], -125, 128)
    wanted = np.clip(reference, -(2.0**128), 2.0**128)
    with np.errstate(invalid="ignore"):
        found = np.clip(got.astype(np.float64), -(2.0**128), 2.0**128)
        error = np.ldexp(np.abs(found - wanted), 24 - exponent)
    nans = np.isnan(got).astype(int) + np.isnan(reference)
    return np.choose(nans, [error, np.inf, 0.0])


def _encodings(everything: bool, count: int) -> Iterator[npt.NDArray[np.float32]]:
    if not everything:
        yield sample(count)
        return
    step = 2**22
    for start in range(0, 2**32, step):
        yield np.arange(start, start + step, dtype=np.uint64).astype(np.uint32).view(np.float32)


def _partners(x: npt.NDArray[np.float32], arity: int) -> list[npt.NDArray[np.float32]]:
    """For functions of two arguments: the second is the first in another order, with magnitudes of its own."""
    return [x] if arity == 1 else [x, np.random.default_rng(0).permutation(x)]


def _measure(name: str, everything: bool, count: int) -> tuple[float, float, float]:
    """The largest error of ours, the input it happened at, and the largest error of eager."""
    target = host_target()
    arity = 2 if name in ("atan2", "pow", "hypot", "nextafter") else 1
    ours = compile_elementwise(MATH[name], target, arity, target.lanes)
    worst, where, eager_worst = 0.0, 0.0, 0.0
    chunks = list(_encodings(everything, count)) if not everything else _encodings(everything, count)
    for chunk in track(chunks, name, total=1 if not everything else 1024, transient=True, disable=not everything):
        args = _partners(chunk, arity)
        tensors = [torch.from_numpy(a) for a in args]
        reference = REFERENCE[name](*[t.double() for t in tensors]).numpy()
        errors = ulp_error(ours(*args), reference)
        position = int(errors.argmax())
        if errors[position] > worst:
            worst, where = float(errors[position]), float(args[0][position])
        eager_worst = max(eager_worst, float(ulp_error(REFERENCE[name](*tensors).numpy(), reference).max()))
    return worst, where, eager_worst


def _nanoseconds(functions: list[Callable[..., Any]], repeats: int = 2000) -> list[float]:
    """The least time of each function, taken in turns."""
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for index, function in enumerate(functions):
            start = time.perf_counter_ns()
            function()
            best[index] = min(best[index], time.perf_counter_ns() - start)
    return best


def _speed(names: list[str], console: Console) -> None:
    """Time per element of the inlined code and of Sleef, on 4096 floats which stay in L1."""
    table = Table("op", "inlined ns/element", "Sleef ns/element", "ratio")
    for name in names:
        ours, theirs = _time_per_element([MATH[name], _library_emitter(name)], 4096)
        table.add_row(name, f"{ours:.3f}", f"{theirs:.3f}", f"{theirs / ours:.1f}")
    console.print(table)


def _library_emitter(name: str) -> Emitter:
    return lambda builder, target, args: call_library(builder, target, name, args)


def _time_per_element(emitters: list[Emitter], count: int) -> list[float]:
    """Nanoseconds per element of each emitter on `count` floats in [0.1, 5), the cost of the call itself taken off."""
    target = host_target()
    x, out = torch.empty(count).uniform_(0.1, 5.0).numpy(), torch.empty(count).numpy()  # Aligned to 64 bytes.

    def run(compiled: Elementwise, length: int) -> Callable[[], None]:
        return lambda: compiled.function(x.ctypes.data, out.ctypes.data, length)

    compiled = [compile_elementwise(emitter, target, 1, target.lanes) for emitter in emitters]
    times = _nanoseconds([run(code, length) for code in compiled for length in (count, target.lanes)])
    return [(whole - call) / (count - target.lanes) for whole, call in zip(times[::2], times[1::2], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ulp", description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", choices=sorted(MATH), help="measure this function (may repeat)")
    parser.add_argument("--all", action="store_true", help="all 2**32 encodings of functions of one argument")
    parser.add_argument("--speed", action="store_true", help="time the inlined functions against Sleef")
    arguments = parser.parse_args()
    console = Console()
    names = arguments.op or sorted(MATH)
    if arguments.speed:
        _speed([name for name in names if name in INLINE], console)
        return
    table = Table("op", "code", "max ulp", "at", "eager's max ulp")
    for name in names:
        worst, where, eager = _measure(name, arguments.all, 2**22)
        table.add_row(name, "inline" if name in INLINE else "call", f"{worst:.3f}", f"{where:.9g}", f"{eager:.3f}")
    console.print(table)


if __name__ == "__main__":
    main()
