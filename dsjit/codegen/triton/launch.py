"""Launches compiled kernels on a GPU, through the driver API: no compiler, no stub in C."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeAlias

from dsjit.codegen.llvm.executor import Call, DeviceKernel, KernelCall, StepSequence
from dsjit.codegen.triton.code import GpuCode
from dsjit.codegen.triton.size_facts import SizeFacts, size_facts
from dsjit.codegen.triton.source import KernelSource
from dsjit.errors import BackendError

__all__ = [
    "ALIGNMENT", "Batch", "Driver", "FrameLaunches", "GpuKernel", "Launch", "OpenLaunches", "Specialization",
    "Variant", "build_launches", "pack_launches",
]  # fmt: skip

ALIGNMENT: Final = 16
"""Bytes: what code may rely on where a buffer starts at a multiple of it; and numbers, of sizes."""


Batch: TypeAlias = Callable[[int], None]
"""Queues kernels one after the other, given where the table of addresses is. Raises BackendError."""


class Driver(Protocol):
    """What a GPU's driver does for one device."""

    def load(self, code: GpuCode) -> int:
        """A handle of the function. Raises BackendError."""
        ...

    def batch(self, launches: Sequence[Launch]) -> Batch:
        """What does these launches. Thread-safe."""
        ...


@dataclass(frozen=True, slots=True)
class Specialization:
    """What code relies on. aligned: which buffers start at a multiple of 16 bytes. divisible: which sizes are multiples
    of 16. narrow: whether 32 bits hold every index."""

    aligned: tuple[bool, ...]
    divisible: tuple[bool, ...] = ()
    narrow: bool = False


@dataclass(frozen=True, slots=True)
class Variant:
    """Code that relies on something, and the handle of its function."""

    code: GpuCode
    function: int


@dataclass(slots=True, eq=False)
class GpuKernel(DeviceKernel):
    """A kernel of one device. compile: makes code that relies on something. variants: the code that there is.

    narrow: the source for indices of 32 bits, where sizes decide whether these do.
    """

    source: KernelSource
    driver: Driver
    compile: Callable[[KernelSource, Specialization], GpuCode]
    narrow: KernelSource | None = None
    variants: dict[Specialization, Variant] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    facts: Callable[..., SizeFacts] = field(init=False)

    def __post_init__(self) -> None:
        self.facts = size_facts(self.source, self.narrow)

    def code(self, specialization: Specialization) -> GpuCode:
        """Made anew; nothing is loaded. Raises BackendError."""
        source = self.narrow if specialization.narrow and self.narrow is not None else self.source
        return self.compile(source, specialization)

    def add(self, specialization: Specialization, code: GpuCode) -> Variant:
        """Loads code that relies on this. Raises BackendError."""
        found = self.variants[specialization] = Variant(code, self.driver.load(code))
        return found

    def variant(self, specialization: Specialization) -> Variant:
        """The code that relies on this; compiled when there is none yet. Raises BackendError."""
        found = self.variants.get(specialization)
        if found is not None:
            return found
        with self.lock:
            found = self.variants.get(specialization)
            return found if found is not None else self.add(specialization, self.code(specialization))


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """One kernel of a sequence. slots, offsets: of its buffers in the table, and bytes behind the addresses there.
    sizes: what it takes after them. variant: the code, which relies on `specialization`."""

    kernel: GpuKernel
    slots: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    programs: int
    specialization: Specialization
    variant: Variant

    @staticmethod
    def of(kernel: GpuKernel, slots: tuple[int, ...], offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Launch:
        """For buffers that are all aligned; compiles and loads what is not yet. Raises BackendError."""
        programs, divisible, narrow = kernel.facts(*sizes)
        specialization = Specialization((True,) * len(slots), divisible, narrow)
        return Launch(kernel, slots, offsets, sizes, programs, specialization, kernel.variant(specialization))

    def arguments(self, table: int) -> tuple[int, ...]:
        """The addresses of its buffers, from the table at this address, and its sizes."""
        words = (ctypes.c_int64 * (1 + max(self.slots, default=0))).from_address(table)
        return (*[words[slot] + offset for slot, offset in zip(self.slots, self.offsets, strict=True)], *self.sizes)

    def realigned(self, table: int) -> Launch:
        """The same for buffers that are aligned as those in the table are. Raises BackendError."""
        addresses = self.arguments(table)[: len(self.slots)]
        own = replace(self.specialization, aligned=tuple([address % ALIGNMENT == 0 for address in addresses]))
        return replace(self, specialization=own, variant=self.kernel.variant(own))


def build_launches(calls: Sequence[Call]) -> StepSequence:
    """Kernels that are queued one after the other; compiles and loads what is not yet. Raises BackendError.

    The device is not waited for. `run_timed` cannot know when it is done: it raises BackendError.
    """
    kept = tuple(calls)
    return StepSequence(kept, FrameLaunches(pack_launches(kept), kept), _refuse_timing)


def pack_launches(calls: Sequence[Call]) -> tuple[Launch, ...]:
    """The launches of calls that have any programs. Raises BackendError."""
    made = [Launch.of(kernel, call.slots, call.offsets or zeros, call.sizes) for call, kernel, zeros in _parts(calls)]
    return tuple([launch for launch in made if launch.programs])


def _parts(calls: Sequence[Call]) -> Iterator[tuple[KernelCall, GpuKernel, tuple[int, ...]]]:
    """Each with its kernel, and a 0 for each of its buffers."""
    for call in calls:
        assert isinstance(call, KernelCall) and isinstance(call.kernel, GpuKernel)
        yield call, call.kernel, (0,) * len(call.slots)


@dataclass(frozen=True, slots=True)
class OpenLaunches:
    """A sequence for many sizes: of each launch, what does not depend on them, and where its sizes are in the words."""

    launches: tuple[tuple[GpuKernel, tuple[int, ...], tuple[int, ...], slice], ...]

    @staticmethod
    def of(calls: tuple[Call, ...]) -> OpenLaunches | None:
        """None when addresses may depend on sizes."""
        found, position = [], 0
        for call, kernel, zeros in _parts(calls):
            if call.offsets:
                return None
            own = slice(position, position + len(call.sizes))
            found.append((kernel, call.slots, zeros, own))
            position = own.stop
        return OpenLaunches(tuple(found))

    def words(self, calls: tuple[Call, ...]) -> tuple[int, ...]:
        """The sizes of equal calls."""
        return tuple([size for call, _, _ in _parts(calls) for size in call.sizes])

    def filled(self, words: tuple[int, ...]) -> tuple[Launch, ...]:
        """The launches for these sizes. Raises BackendError."""
        made = [Launch.of(kernel, slots, offsets, words[own]) for kernel, slots, offsets, own in self.launches]
        return tuple([launch for launch in made if launch.programs])


class FrameLaunches:
    """A sequence of launches, which may change from run to run. Called as `StepSequence.run`. kept: what they are."""

    __slots__ = ("_batch", "_kept")

    def __init__(self, launches: tuple[Launch, ...], kept: tuple[Call, ...]) -> None:
        self._kept = kept
        self.fill(launches)

    def fill(self, launches: tuple[Launch, ...]) -> None:
        """Run these from now on."""
        self._batch = launches[0].kernel.driver.batch(launches) if launches else None

    def __call__(self, table: int, threads: int) -> None:
        if self._batch is not None:
            self._batch(table)


def _refuse_timing(table: int, threads: int, timestamps: int) -> None:
    raise BackendError("kernels on a GPU are not timed one by one")
