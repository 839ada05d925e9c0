"""Launches compiled kernels on a GPU, through the driver API: no compiler, no stub in C."""

from __future__ import annotations

import ctypes
import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, Final, Protocol, TypeAlias

from dsjit.codegen.llvm.executor import Call, DeviceKernel, KernelCall, StepSequence
from dsjit.codegen.triton.code import GpuCode
from dsjit.codegen.triton.source import KernelSource
from dsjit.errors import BackendError

__all__ = ["Driver", "GpuKernel", "Launch", "Queue", "build_launches"]

ALIGNMENT: Final = 16
"""Bytes: what code may rely on where a buffer starts at a multiple of it."""


Queue: TypeAlias = Callable[[Sequence[int]], None]
"""Queues a kernel on the current stream, given its buffers' addresses and its sizes. Raises BackendError."""


class Driver(Protocol):
    """What a GPU's driver does for one device."""

    def load(self, code: GpuCode) -> int:
        """A handle of the function. Raises BackendError."""
        ...

    def prepare(self, function: int, programs: int, code: GpuCode) -> Queue:
        """What launches so many programs of the function. Thread-safe."""
        ...


@dataclass(frozen=True, slots=True)
class Variant:
    """Code for given alignments, and its handle."""

    code: GpuCode
    function: int


@dataclass(slots=True, eq=False)
class GpuKernel(DeviceKernel):
    """A kernel of one device. compile: makes code for the alignments of buffers. variants: by alignments."""

    source: KernelSource
    driver: Driver
    compile: Callable[[tuple[bool, ...]], GpuCode]
    variants: dict[tuple[bool, ...], Variant] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def variant(self, aligned: tuple[bool, ...]) -> Variant:
        """The code for buffers so aligned; compiled when there is none yet. Raises BackendError."""
        with self.lock:
            found = self.variants.get(aligned)
            if found is None:
                code = self.compile(aligned)
                found = self.variants[aligned] = Variant(code, self.driver.load(code))
        return found


@dataclass(slots=True, eq=False)
class Launch:
    """One kernel of a sequence. addresses: takes those of its buffers from the table. sizes: what it takes after them.

    usual: queues the code for buffers that are all aligned; others: that for other alignments, as they are met.
    """

    kernel: GpuKernel
    addresses: Callable[[Any], tuple[int, ...]]
    sizes: tuple[int, ...]
    programs: int
    usual: Queue
    others: dict[tuple[bool, ...], Queue] = field(default_factory=dict)

    @staticmethod
    def of(call: Call) -> Launch:
        assert isinstance(call, KernelCall)
        kernel = call.kernel
        assert isinstance(kernel, GpuKernel)
        values = dict(zip([size.name for size in kernel.source.kernel.sizes], call.sizes, strict=True))
        programs = kernel.source.schedule.program_count(values)
        usual = kernel.variant((True,) * len(call.slots))
        queue = kernel.driver.prepare(usual.function, programs, usual.code)
        return Launch(kernel, _reader(call.slots, call.offsets), call.sizes, programs, queue)

    def ready(self, table: ctypes.Array[ctypes.c_int64]) -> tuple[Queue, tuple[int, ...]]:
        """What queues it, and what that takes, for the addresses that are in the table now. Raises BackendError when
        code for their alignments cannot be made."""
        addresses = self.addresses(table)
        queue = self.usual if not reduce(operator.or_, addresses, 0) % ALIGNMENT else self._other(addresses)
        return queue, addresses + self.sizes

    def _other(self, addresses: tuple[int, ...]) -> Queue:
        aligned = tuple([address % ALIGNMENT == 0 for address in addresses])
        queue = self.others.get(aligned)
        if queue is None:
            variant = self.kernel.variant(aligned)
            queue = self.kernel.driver.prepare(variant.function, self.programs, variant.code)
            self.others[aligned] = queue
        return queue


def _reader(slots: tuple[int, ...], offsets: tuple[int, ...]) -> Callable[[Any], tuple[int, ...]]:
    """From a table to `table[slot] + offset`, for each slot; offsets may be left out."""
    if any(offsets) or len(slots) < 2:
        pairs = tuple(zip(slots, offsets or (0,) * len(slots), strict=True))
        return lambda table: tuple([table[slot] + offset for slot, offset in pairs])
    return operator.itemgetter(*slots)


def build_launches(calls: Sequence[Call]) -> StepSequence:
    """Kernels that are queued one after the other; compiles and loads what is not yet. Raises BackendError.

    The device is not waited for. `run_timed` cannot know when it is done: it raises BackendError.
    """
    launches = [launch for launch in map(Launch.of, calls) if launch.programs]
    count = 1 + max((slot for call in calls if isinstance(call, KernelCall) for slot in call.slots), default=0)
    kept = tuple(calls)
    run = partial(_run, launches, ctypes.c_int64 * count)
    return StepSequence(kept, run, _refuse_timing)


def _run(launches: Sequence[Launch], table_type: type[ctypes.Array[ctypes.c_int64]], table: int, threads: int) -> None:
    addresses = table_type.from_address(table)
    # Nothing is queued before all can be: what writes over the caller's tensors must not be followed by a failure.
    for queue, words in [launch.ready(addresses) for launch in launches]:
        queue(words)


def _refuse_timing(table: int, threads: int, timestamps: int) -> None:
    raise BackendError("kernels on a GPU are not timed one by one")
