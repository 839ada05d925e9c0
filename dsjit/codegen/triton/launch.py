"""Launches compiled kernels on a GPU, through the driver API: no compiler, no stub in C."""

from __future__ import annotations

import ctypes
import operator
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Final, Protocol

from dsjit.codegen.llvm.executor import Call, DeviceKernel, KernelCall, StepSequence
from dsjit.codegen.triton.code import GpuCode
from dsjit.codegen.triton.source import KernelSource
from dsjit.errors import BackendError

__all__ = ["Driver", "GpuKernel", "Launch", "build_launches", "packed"]

ALIGNMENT: Final = 16
"""Bytes: what code may rely on where a buffer starts at a multiple of it."""


class Driver(Protocol):
    """What a GPU's driver does for one device."""

    def load(self, code: GpuCode) -> int:
        """A handle of the function. Raises BackendError."""
        ...

    def launch(self, function: int, programs: int, code: GpuCode, arguments: bytes) -> None:
        """Queue `programs` programs on the current stream. Raises BackendError."""
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

    def variant(self, addresses: Sequence[int]) -> Variant:
        """The code for buffers at these addresses; compiled when there is none yet. Raises BackendError."""
        aligned = tuple([address % ALIGNMENT == 0 for address in addresses])
        with self.lock:
            found = self.variants.get(aligned)
            if found is None:
                code = self.compile(aligned)
                found = self.variants[aligned] = Variant(code, self.driver.load(code))
        return found


def packed(code: GpuCode, addresses: Sequence[int], sizes: Sequence[int]) -> bytes:
    """The arguments as the function takes them: 8 bytes each, and 0 for what is Triton's own."""
    words = [*addresses, *sizes]
    return struct.pack(f"<{len(words)}q{8 * (code.parameters - len(words))}x", *words)


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel of a sequence. slots, offsets: where its buffers are: `table[slot] + offset`.

    usual: the variant for buffers that are all aligned.
    """

    kernel: GpuKernel
    slots: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    programs: int
    usual: Variant

    @staticmethod
    def of(call: Call) -> Launch:
        assert isinstance(call, KernelCall)
        kernel = call.kernel
        assert isinstance(kernel, GpuKernel)
        values = dict(zip([size.name for size in kernel.source.kernel.sizes], call.sizes, strict=True))
        offsets = call.offsets or (0,) * len(call.slots)
        programs = kernel.source.schedule.program_count(values)
        return Launch(kernel, call.slots, offsets, call.sizes, programs, kernel.variant([0] * len(call.slots)))

    def run(self, table: Mapping[int, int]) -> None:
        if not self.programs:
            return
        addresses = [table[slot] + offset for slot, offset in zip(self.slots, self.offsets, strict=True)]
        aligned = not reduce(operator.or_, addresses, 0) % ALIGNMENT
        variant = self.usual if aligned else self.kernel.variant(addresses)
        arguments = packed(variant.code, addresses, self.sizes)
        self.kernel.driver.launch(variant.function, self.programs, variant.code, arguments)


def build_launches(calls: Sequence[Call]) -> StepSequence:
    """Kernels that are queued one after the other; compiles and loads what is not yet. Raises BackendError.

    The device is not waited for. `run_timed` cannot know when it is done: it raises BackendError.
    """
    launches = [Launch.of(call) for call in calls]
    count = 1 + max((slot for launch in launches for slot in launch.slots), default=0)
    return StepSequence(tuple(calls), partial(_run, launches, ctypes.c_int64 * count), _refuse_timing)


def _run(launches: Sequence[Launch], table_type: type[ctypes.Array[ctypes.c_int64]], table: int, threads: int) -> None:
    addresses = table_type.from_address(table)
    for launch in launches:
        launch.run(addresses)  # type: ignore[arg-type]


def _refuse_timing(table: int, threads: int, timestamps: int) -> None:
    raise BackendError("kernels on a GPU are not timed one by one")
