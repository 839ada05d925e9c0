"""A Program whose tensors and kernels are on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from dsjit.codegen.program import Executor, GuestProgram, Program
from dsjit.codegen.sized_program import SizedProgram
from dsjit.codegen.triton.launch import FrameLaunches, OpenLaunches, build_launches, pack_launches
from dsjit.codegen.triton.overwriting import GPU_OVERWRITES

__all__ = ["DeviceEvent", "GpuGuestProgram", "GpuProgram", "gpu_executor"]


def gpu_executor(device: torch.device) -> Executor:
    """Launches kernels on the current stream of a device."""
    return Executor(
        device, build_launches, GPU_OVERWRITES, for_sizes=OpenLaunches.of, pack=pack_launches, of_frame=FrameLaunches
    )


class DeviceEvent(Protocol):
    """A mark on a stream, as `torch.cuda.Event(enable_timing=True)` is."""

    def record(self) -> object:
        """On the current stream. Does not wait."""
        ...

    def synchronize(self) -> object:
        """Wait until the device has come to it."""
        ...

    def elapsed_time(self, later: Any, /) -> float:
        """ms until the device came to the later one."""
        ...


@dataclass(slots=True, weakref_slot=True)
class GpuProgram:
    """Called as a `Program`.

    program: its memory is not used. streams: one Program for each stream, as what runs on several streams at a time
        must not share an arena. device_guard: makes the device the current one. current_stream: its handle.
    new_event: for profiles.
    """

    program: Program | SizedProgram
    device_guard: Callable[[], AbstractContextManager[object]]
    current_stream: Callable[[], int]
    new_event: Callable[[], DeviceEvent]
    streams: dict[int, Program | SizedProgram] = field(default_factory=dict)

    def __call__(self, inputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        with self.device_guard():
            program = self.on_stream()
            return program(list(inputs)) if isinstance(program, SizedProgram) else program(inputs)

    def run_at(self, point: tuple[int, ...], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As `SizedProgram.run_at`, of a program for many sizes."""
        with self.device_guard():
            program = self.on_stream()
            assert isinstance(program, SizedProgram)
            return program.run_at(point, inputs)

    @property
    def serves_sizes(self) -> bool:
        """Whether it is for many sizes."""
        return isinstance(self.program, SizedProgram)

    def apart(self) -> GpuProgram:
        """The same, with memory of its own."""
        return replace(self, streams={})

    def on_stream(self) -> Program | SizedProgram:
        """The program of the current stream of the device, which is the current one."""
        stream = self.current_stream()
        program = self.streams.get(stream)
        if program is None:
            program = self.streams.setdefault(stream, self.program.apart())
        return program

    @property
    def source(self) -> str:
        """The text of `run`."""
        return self.program.source

    @property
    def arena_bytes(self) -> int:
        return self.program.arena_bytes

    @property
    def intermediate_bytes(self) -> int:
        return self.program.intermediate_bytes


@dataclass(frozen=True, slots=True)
class GpuGuestProgram:
    """`program`, run in the arenas that `host` has on the same stream: what the stream does later comes after it. For
    exact sizes."""

    program: GpuProgram
    host: GpuProgram

    def __call__(self, inputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """As `GpuProgram.__call__`."""
        with self.program.device_guard():
            program, host = self.program.on_stream(), self.host.on_stream()
            assert isinstance(program, Program) and isinstance(host, Program)
            return GuestProgram(program, host)(inputs)
