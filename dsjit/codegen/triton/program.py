"""A Program whose tensors and kernels are on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from dsjit.codegen.program import GuestProgram, Program

__all__ = ["DeviceEvent", "GpuGuestProgram", "GpuProgram"]


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

    program: its frames are not used. streams: one Program for each stream, as what runs on several streams at a time
        must not share an arena. device_guard: makes the device the current one. current_stream: its handle.
    new_event: for profiles.
    """

    program: Program
    device_guard: Callable[[], AbstractContextManager[object]]
    current_stream: Callable[[], int]
    new_event: Callable[[], DeviceEvent]
    streams: dict[int, Program] = field(default_factory=dict)

    def __call__(self, inputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        with self.device_guard():
            return self.on_stream()(inputs)

    def apart(self) -> GpuProgram:
        """The same, with memory of its own."""
        return replace(self, streams={})

    def on_stream(self) -> Program:
        """The Program of the current stream of the device, which is the current one."""
        stream = self.current_stream()
        program = self.streams.get(stream)
        if program is None:
            program = self.streams.setdefault(stream, replace(self.program, frames=[]))
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
    """`program`, run in the arenas that `host` has on the same stream: what the stream does later comes after it."""

    program: GpuProgram
    host: GpuProgram

    def __call__(self, inputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """As `GpuProgram.__call__`."""
        with self.program.device_guard():
            return GuestProgram(self.program.on_stream(), self.host.on_stream())(inputs)
