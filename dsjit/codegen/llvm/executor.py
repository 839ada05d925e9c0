"""Sequences of native steps (kernels, matrix products), each run with one call from Python."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final, TypeAlias

import torch

from dsjit.codegen.gemm import MatmulPlan, Matrix
from dsjit.codegen.llvm.driver import Driver, driver, has_threads
from dsjit.codegen.llvm.engine import CompiledKernel
from dsjit.codegen.llvm.symbols import native_symbol
from dsjit.codegen.work import KernelWork
from dsjit.errors import BackendError

__all__ = [
    "BufferRef",
    "Call",
    "DeviceKernel",
    "FrameSequence",
    "GemmCall",
    "KernelCall",
    "OpenSequence",
    "StepSequence",
    "build_sequence",
    "gemm_available",
    "packed",
]

_PARALLEL_NS: Final = 15_000
"""Work below which waking another thread does not pay: a launch costs 1.6 us, a worker that sleeps some 5 us more."""

_SHARE_NS: Final = 8_000
"""Work that each thread should have at least."""

_BLAS: Final[dict[torch.dtype, str]] = {torch.float32: "sgemm_", torch.float64: "dgemm_"}
_BATCHED_BLAS: Final[dict[torch.dtype, str]] = {torch.float32: "sgemm_batch_", torch.float64: "dgemm_batch_"}
"""Of MKL alone."""


class DeviceKernel:
    """A kernel of another device, which its own sequences run."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class KernelCall:
    """Runs a kernel on the buffers in `slots` of the table, one a param and one for the flag of a kernel with checks,
    each `offsets` bytes on (default 0).

    sizes: the values of the kernel's sizes. zero: a slot of the table that holds 0, when there are sizes.
    """

    kernel: CompiledKernel | DeviceKernel
    slots: tuple[int, ...]
    offsets: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    zero: int = 0


@dataclass(frozen=True, slots=True)
class BufferRef:
    """Matrices of a batch: the first lies `offset` bytes after the address in `slot`, each next one `stride` on."""

    slot: int
    offset: int = 0
    stride: int = 0


@dataclass(frozen=True, slots=True)
class GemmCall:
    """`c = alpha * op(a) @ op(b) + beta * c`, as BLAS has it: column-major matrices, and `op` transposes when asked.

    m, n, k: c is m by n, op(a) is m by k. lda, ldb, ldc: elements from one column to the next.
    batch: that many products, of matrices that lie `BufferRef.stride` apart.
    """

    dtype: torch.dtype
    transa: bool
    transb: bool
    m: int
    n: int
    k: int
    lda: int
    ldb: int
    ldc: int
    a: BufferRef
    b: BufferRef
    c: BufferRef
    alpha: float = 1.0
    beta: float = 0.0
    batch: int = 1

    @staticmethod
    def row_major(plan: MatmulPlan, slots: tuple[int, int, int]) -> GemmCall:
        """The call for a product of row-major matrices. slots: of a, b and c.

        A row-major matrix is the transpose of a column-major one, and c' = b' @ a'.
        """
        size = plan.dtype.itemsize
        transpose_b, ldb = _layout(plan.b, plan.k, plan.n)
        transpose_a, lda = _layout(plan.a, plan.m, plan.k)
        left, right, result = (
            BufferRef(slot, matrix.offset * size, matrix.batch * size)
            for slot, matrix in zip((slots[1], slots[0], slots[2]), (plan.b, plan.a, plan.c), strict=True)
        )
        return GemmCall(
            plan.dtype, transpose_b, transpose_a, plan.n, plan.m, plan.k, ldb, lda, max(plan.c.row, plan.n),
            left, right, result, batch=plan.batch,
        )  # fmt: skip


def _layout(matrix: Matrix, rows: int, columns: int) -> tuple[bool, int]:
    """Of a row-major rows by columns matrix seen as its column-major transpose: whether BLAS must transpose it back,
    and its leading dimension."""
    if (matrix.column == 1 or columns == 1) and (matrix.row >= columns or rows == 1):
        return False, max(matrix.row, columns)
    return True, max(matrix.column, rows)


Call: TypeAlias = KernelCall | GemmCall


@dataclass(frozen=True, slots=True)
class StepSequence:
    """Encoded steps. calls: what was encoded.

    run: `run(table_address, threads)`: the table is an array of int64, the addresses of buffers by slot; threads is
        how many to use at most. Returns when all is done; lets other Python threads run meanwhile.
    run_timed: `run_timed(table_address, threads, timestamps_address)`: also writes `len + 1` int64 there, ns on the
        clock of `time.monotonic_ns()`, before the first step and after each.
    """

    calls: tuple[Call, ...]
    run: Callable[[int, int], None]
    run_timed: Callable[[int, int, int], None]

    def __len__(self) -> int:
        return len(self.calls)


def gemm_available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether torch exports a Fortran BLAS that `GemmCall` can use for `dtype`."""
    return dtype in _BLAS and native_symbol(_BLAS[dtype]) is not None


def build_sequence(calls: Sequence[Call]) -> StepSequence:
    """Encodes `calls` for the native driver. Raises BackendError when a GemmCall has no BLAS to call."""
    native, kept = driver(), tuple(calls)
    steps, count = _owning_array(encoded(kept), kept), len(kept)
    run = partial(native.run, steps, count)

    def run_timed(table: int, threads: int, timestamps: int) -> None:
        native.run_timed(steps, count, table, threads, timestamps)

    return StepSequence(kept, run, run_timed)


def encoded(calls: Sequence[Call]) -> list[int]:
    """The words of all steps. Raises BackendError when a GemmCall has no BLAS to call."""
    native = driver()
    words: list[int] = []
    for call in calls:
        step = _encode(call, native)
        words += [step[0], len(step) + 1, *step[1:]]
    return words


def _owning_array(words: Sequence[int], owned: object) -> Any:
    """A native array that keeps `owned` alive: a bound `run` holds nothing but the array."""
    steps: Any = _array_type(max(len(words), 1)).from_buffer_copy(_packer(len(words))(*words) or bytes(8))
    steps.owned = owned
    return steps


@cache
def _array_type(count: int) -> Any:
    """With room for attributes."""
    return type("Words", (ctypes.c_int64 * count,), {})


@cache
def _packer(count: int) -> Callable[..., bytes]:
    return struct.Struct(f"{count}q").pack


@dataclass(frozen=True, slots=True)
class OpenSequence:
    """A sequence for many sizes. counted: of each kernel with sizes, where in the encoded
    words its number of pieces of work stands, which the number of threads follows, and where the sizes do."""

    counted: tuple[tuple[int, KernelWork, tuple[tuple[str, int], ...]], ...]

    @staticmethod
    def of(calls: tuple[Call, ...]) -> OpenSequence | None:
        """None when a kernel takes other integers than its sizes."""
        native, position = driver(), 0
        found: list[tuple[int, KernelWork, tuple[tuple[str, int], ...]]] = []
        for call in calls:
            length = len(_encode(call, native)) + 1
            if isinstance(call, KernelCall) and call.sizes and not isinstance(call.kernel, DeviceKernel):
                names, end = call.kernel.sizes, position + length
                if call.kernel.work.arguments(dict(zip(names, call.sizes, strict=True))) != call.sizes:
                    return None
                places = tuple([(name, end - 2 * len(names) + 2 * at + 1) for at, name in enumerate(names)])
                found.append((position + 3, call.kernel.work, places))
            position += length
        return OpenSequence(tuple(found))

    def words(self, calls: tuple[Call, ...]) -> tuple[int, ...]:
        """The words of equal calls with other sizes, without what is counted."""
        words = encoded(calls)
        for position, _, _ in self.counted:
            words[position] = words[position + 1] = 0
        return tuple(words)

    def filled(self, words: tuple[int, ...]) -> bytes:
        """All words, with what is counted. words: as `words` has them."""
        counted = list(words)
        for position, work, places in self.counted:
            values = {name: words[place] for name, place in places}
            items = work.item_count(values)
            counted[position : position + 2] = items, _useful_threads(items, work.item_cost(values))
        return _packer(len(counted))(*counted)


def packed(calls: Sequence[Call]) -> bytes:
    """All words of calls, with what is counted. Raises BackendError as `encoded`."""
    words = encoded(calls)
    return _packer(len(words))(*words)


class FrameSequence:
    """A native sequence with words of its own, which change from run to run. Called as `StepSequence.run`.

    words: their bytes. kept: calls whose machine code has to stay.
    """

    __slots__ = ("_count", "_kept", "_run", "_steps", "_words")

    def __init__(self, words: bytes, kept: tuple[Call, ...]) -> None:
        self._steps = ctypes.create_string_buffer(words, max(len(words), 8))
        self._kept, self._count, self._run = kept, len(kept), driver().run
        self._words = memoryview(self._steps).cast("B")[: len(words)]

    def fill(self, words: bytes) -> None:
        """Run the steps of these words from now on: as many as there were."""
        self._words[:] = words

    def __call__(self, table: int, threads: int) -> None:
        self._run(self._steps, self._count, table, threads)


def _encode(call: Call, native: Driver) -> list[int]:
    """The words of a step, but for its length."""
    match call:
        case KernelCall():
            offsets = call.offsets or (0,) * len(call.slots)
            pairs = [word for pair in zip(call.slots, offsets, strict=True) for word in pair]
            kernel = call.kernel
            if isinstance(kernel, DeviceKernel):
                raise BackendError("a kernel of another device cannot run in a native sequence")
            values = dict(zip(kernel.sizes, call.sizes, strict=True))
            # An arg is what a slot holds plus an offset: nothing but the offset, for a size.
            pairs += [word for size in kernel.work.arguments(values) for word in (call.zero, size)]
            items = kernel.work.item_count(values)
            useful = _useful_threads(items, kernel.work.item_cost(values))
            return [native.kernel_step, kernel.address, items, useful, len(pairs) // 2, *pairs]
        case GemmCall():
            return _encode_gemm(call, native)


def _encode_gemm(call: GemmCall, native: Driver) -> list[int]:
    function = native_symbol(_BLAS[call.dtype]) if call.dtype in _BLAS else None
    if function is None:
        raise BackendError(f"torch exports no BLAS product of {call.dtype} matrices")
    transposes = [ord("T") if transpose else ord("N") for transpose in (call.transa, call.transb)]
    numbers = [_bits(call.alpha, call.dtype), _bits(call.beta, call.dtype)]
    operands = [word for o in (call.a, call.b, call.c) for word in (o.slot, o.offset, o.stride)]
    sizes = [call.m, call.n, call.k, call.lda, call.ldb, call.ldc]
    batched = native_symbol(_BATCHED_BLAS[call.dtype]) or 0
    return [
        native.gemm_step,
        function,
        batched,
        call.batch,
        _gemm_threads(call),
        *transposes,
        *sizes,
        *numbers,
        *operands,
    ]


def _bits(value: float, dtype: torch.dtype) -> int:
    formats = ("<d", "<q") if dtype is torch.float64 else ("<f", "<i")
    bits: int = struct.unpack(formats[1], struct.pack(formats[0], value))[0]
    return bits


def _useful_threads(items: int, item_ns: float) -> int:
    """How many threads the work is worth."""
    total = items * item_ns
    if total < _PARALLEL_NS or not has_threads():
        return 1
    return max(1, min(items, int(total // _SHARE_NS)))


_GEMM_CALL_NS: Final = 300.0
_GEMM_FLOPS_PER_NS: Final = 80.0
_LARGE_GEMM_NS: Final = 200_000.0


def _gemm_threads(call: GemmCall) -> int:
    """How many threads share the batch; 1 leaves threading to BLAS, which is better for few or large products."""
    each = _GEMM_CALL_NS + 2.0 * call.m * call.n * call.k / _GEMM_FLOPS_PER_NS
    if call.batch < 4 or each > _LARGE_GEMM_NS:
        return 1
    return _useful_threads(call.batch, each)
