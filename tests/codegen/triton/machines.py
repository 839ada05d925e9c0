"""A machine that stands for a GPU: its memory is the CPU's, and its kernels run in Triton's interpreter."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch

from dsjit.codegen.triton.code import GpuCode
from dsjit.codegen.triton.interpret import interpret_source
from dsjit.codegen.triton.kernels import GpuKernelCache
from dsjit.codegen.triton.launch import Batch, Launch
from dsjit.codegen.triton.machine import GpuMachine
from dsjit.codegen.triton.source import KernelSource
from dsjit.codegen.triton.target import TritonTarget
from dsjit.codegen.triton.tuning import Tuner

OWN_PARAMETERS = 2
"""What Triton's functions take after a kernel's own arguments."""


def code_of(
    source: KernelSource,
    target: TritonTarget,
    fast: bool = False,
    aligned: Sequence[bool] = (),
    divisible: Sequence[bool] = (),
) -> GpuCode:
    """What a compiler would make, without machine code. Its binary says what it relies on."""
    count = len(source.params) + len(source.sizes) + OWN_PARAMETERS
    relied = repr((*aligned, *divisible)).encode()
    return GpuCode(source, target, source.name, "", relied, 64, 32 * source.warps, count)


@dataclass
class InterpretingDriver:
    """loaded: the codes, by handle less 1. launched: name and number of programs of each launch."""

    loaded: list[GpuCode] = field(default_factory=list)
    launched: list[tuple[str, int]] = field(default_factory=list)

    def load(self, code: GpuCode) -> int:
        self.loaded.append(code)
        return len(self.loaded)

    def batch(self, launches: Sequence[Launch]) -> Batch:
        def run(table: int) -> None:
            for launch in launches:
                own = launch.realigned(table)
                assert self.loaded[own.variant.function - 1] is own.variant.code
                self.launch(own.variant.code, own.programs, own.arguments(table))

        return run

    def launch(self, code: GpuCode, programs: int, words: Sequence[int]) -> None:
        source = code.source
        buffers = {
            param.name: at_address(address, param.dtype)
            for param, address in zip(source.kernel.params, words, strict=False)
        }
        sizes = {size.name: words[len(buffers) + number] for number, size in enumerate(source.kernel.sizes)}
        assert programs == source.schedule.program_count(sizes)
        self.launched.append((source.name, programs))
        interpret_source(source, buffers, sizes=sizes)


class ClockEvent:
    """Stamped at once, by the clock of the machine that stands for the GPU. waited: how many were waited for."""

    waited = 0

    def __init__(self) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        ClockEvent.waited += 1

    def elapsed_time(self, later: ClockEvent) -> float:
        return 1e3 * (later.seconds - self.seconds)


def at_address(address: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of the one element there; nothing stops the interpreter from going on."""
    element = (ctypes.c_char * dtype.itemsize).from_address(address)
    return torch.frombuffer(element, dtype=dtype)


@contextmanager
def cpu_for_a_gpu(driver: InterpretingDriver) -> Iterator[GpuMachine]:
    """Tensors on the CPU are taken for a GPU's meanwhile, also by what is jitted already."""
    machine = interpreting_machine(driver)
    with (
        patch("dsjit.api.builder.gpu_of", lambda graph: machine.device),
        patch("dsjit.api.session.gpu_machine", lambda device: machine),
    ):
        yield machine


def interpreting_machine(driver: InterpretingDriver, tuner: Tuner | None = None) -> GpuMachine:
    kernels = GpuKernelCache(TritonTarget.parse("cuda:sm_90"), driver, code_of)
    return GpuMachine(torch.device("cpu"), kernels, contextlib.nullcontext, lambda: 7, ClockEvent, tuner)
