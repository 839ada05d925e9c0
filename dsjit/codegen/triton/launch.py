"""Launches compiled kernels on a GPU, through the driver API: no compiler, no stub in C."""

from __future__ import annotations

import ctypes
import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Final, Protocol, TypeAlias

from dsjit.codegen.llvm.executor import Call, DeviceKernel, KernelCall, StepSequence
from dsjit.codegen.triton.code import GpuCode
from dsjit.codegen.triton.size_facts import SizeFacts, size_facts
from dsjit.codegen.triton.source import KernelSource
from dsjit.errors import BackendError

__all__ = [
    "ALIGNMENT", "Driver", "FrameLaunches", "GpuKernel", "Launch", "OpenLaunches", "Queue", "Specialization",
    "build_launches", "pack_launches",
]  # fmt: skip

ALIGNMENT: Final = 16
"""Bytes: what code may rely on where a buffer starts at a multiple of it; and numbers, of sizes."""


Queue: TypeAlias = Callable[[int, Sequence[int]], None]
"""Queues so many programs of a kernel on the current stream, given its buffers' addresses and its sizes. Raises
BackendError."""


class Driver(Protocol):
    """What a GPU's driver does for one device."""

    def load(self, code: GpuCode) -> int:
        """A handle of the function. Raises BackendError."""
        ...

    def prepare(self, function: int, code: GpuCode) -> Queue:
        """What launches programs of the function. Thread-safe."""
        ...


@dataclass(frozen=True, slots=True)
class Specialization:
    """What code relies on. aligned: which buffers start at a multiple of 16 bytes. divisible: which sizes are multiples
    of 16. narrow: whether 32 bits hold every index."""

    aligned: tuple[bool, ...]
    divisible: tuple[bool, ...] = ()
    narrow: bool = False


@dataclass(slots=True, eq=False)
class GpuKernel(DeviceKernel):
    """A kernel of one device. compile: makes code that relies on something. queues: of the code that there is.

    narrow: the source for indices of 32 bits, where sizes decide whether these do.
    """

    source: KernelSource
    driver: Driver
    compile: Callable[[KernelSource, Specialization], GpuCode]
    narrow: KernelSource | None = None
    queues: dict[Specialization, Queue] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    facts: Callable[..., SizeFacts] = field(init=False)

    def __post_init__(self) -> None:
        self.facts = size_facts(self.source, self.narrow)

    def queue(self, specialization: Specialization) -> Queue:
        """What launches code that relies on this; compiled when there is none yet. Raises BackendError."""
        found = self.queues.get(specialization)
        if found is not None:
            return found
        with self.lock:
            found = self.queues.get(specialization)
            if found is None:
                source = self.narrow if specialization.narrow and self.narrow is not None else self.source
                code = self.compile(source, specialization)
                found = self.queues[specialization] = self.driver.prepare(self.driver.load(code), code)
        return found


@dataclass(slots=True, eq=False)
class Launch:
    """One kernel of a sequence. addresses: takes those of its buffers from the table. sizes: what it takes after them.

    usual: what code for buffers that are all aligned relies on, and `queue` queues it.
    """

    kernel: GpuKernel
    addresses: Callable[[Any], tuple[int, ...]]
    sizes: tuple[int, ...]
    programs: int
    usual: Specialization
    queue: Queue

    @staticmethod
    def of(call: Call) -> Launch:
        assert isinstance(call, KernelCall) and isinstance(call.kernel, GpuKernel)
        return Launch.at(call.kernel, _reader(call.slots, call.offsets), (True,) * len(call.slots), call.sizes)

    @staticmethod
    def at(
        kernel: GpuKernel,
        addresses: Callable[[Any], tuple[int, ...]],
        all_aligned: tuple[bool, ...],
        sizes: tuple[int, ...],
    ) -> Launch:
        """With these sizes; compiles and loads what is not yet. Raises BackendError."""
        programs, divisible, narrow = kernel.facts(*sizes)
        usual = Specialization(all_aligned, divisible, narrow)
        return Launch(kernel, addresses, sizes, programs, usual, kernel.queue(usual))

    def run(self, table: ctypes.Array[ctypes.c_int64]) -> None:
        """Queue it, with the addresses that are in the table now."""
        addresses = self.addresses(table)
        queue = self.queue
        if reduce(operator.or_, addresses, 0) % ALIGNMENT:
            aligned = tuple([address % ALIGNMENT == 0 for address in addresses])
            queue = self.kernel.queue(replace(self.usual, aligned=aligned))
        queue(self.programs, addresses + self.sizes)


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
    kept = tuple(calls)
    return StepSequence(kept, FrameLaunches(pack_launches(kept), kept), _refuse_timing)


def pack_launches(calls: Sequence[Call]) -> tuple[Launch, ...]:
    """The launches of calls that have any programs. Raises BackendError."""
    return tuple([launch for launch in map(Launch.of, calls) if launch.programs])


@dataclass(frozen=True, slots=True)
class OpenLaunches:
    """A sequence for many sizes: what does not depend on them, and where each launch has its sizes among all words."""

    launches: tuple[tuple[GpuKernel, Callable[[Any], tuple[int, ...]], tuple[bool, ...], slice], ...]

    @staticmethod
    def of(calls: tuple[Call, ...]) -> OpenLaunches | None:
        """None when addresses depend on sizes."""
        found, position = [], 0
        for call in calls:
            assert isinstance(call, KernelCall) and isinstance(call.kernel, GpuKernel)
            if call.offsets:
                return None
            own = slice(position, position + len(call.sizes))
            found.append((call.kernel, _reader(call.slots, ()), (True,) * len(call.slots), own))
            position = own.stop
        return OpenLaunches(tuple(found))

    def words(self, calls: tuple[Call, ...]) -> tuple[int, ...]:
        """The sizes of equal calls."""
        return tuple([size for call in calls if isinstance(call, KernelCall) for size in call.sizes])

    def filled(self, words: tuple[int, ...]) -> tuple[Launch, ...]:
        """The launches for these sizes. Raises BackendError."""
        made = [Launch.at(kernel, reader, aligned, words[own]) for kernel, reader, aligned, own in self.launches]
        return tuple([launch for launch in made if launch.programs])


class FrameLaunches:
    """A sequence of launches, which may change from run to run. Called as `StepSequence.run`. calls: what they are."""

    __slots__ = ("_launches", "_table")

    def __init__(self, launches: tuple[Launch, ...], calls: Sequence[Call]) -> None:
        slots = [slot for call in calls if isinstance(call, KernelCall) for slot in call.slots]
        self._table = ctypes.c_int64 * (1 + max(slots, default=0))
        self.fill(launches)

    def fill(self, launches: tuple[Launch, ...]) -> None:
        """Run these from now on."""
        self._launches = launches

    def __call__(self, table: int, threads: int) -> None:
        addresses = self._table.from_address(table)
        for launch in self._launches:
            launch.run(addresses)


def _refuse_timing(table: int, threads: int, timestamps: int) -> None:
    raise BackendError("kernels on a GPU are not timed one by one")
