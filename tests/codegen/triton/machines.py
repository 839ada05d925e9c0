"""A machine that stands for a GPU: its memory is the CPU's, and its kernels run in Triton's interpreter."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

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
    """loaded: the codes, by handle less 1. launched: name and number of programs of each launch. tape: what launches
    are written to, instead of being run."""

    loaded: list[GpuCode] = field(default_factory=list)
    launched: list[tuple[str, int]] = field(default_factory=list)
    tape: list[Callable[[], object]] | None = None

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
        if self.tape is not None:
            self.tape.append(partial(self.run, code, programs, words))
        else:
            self.run(code, programs, words)

    def run(self, code: GpuCode, programs: int, words: Sequence[int]) -> None:
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


@dataclass
class Tape:
    """What was recorded, at the addresses at which it was recorded. memory: what was made meanwhile."""

    steps: list[Callable[[], object]] = field(default_factory=list)
    memory: list[torch.Tensor] = field(default_factory=list)
    replays: int = 0

    def replay(self) -> None:
        self.replays += 1
        for step in self.steps:
            step()


class _Taping(TorchDispatchMode):
    """Writes calls down. New memory is made at once, and holds nothing of use."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError("what is drawn would be the same in each replay")
        written = [a for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        places_only = tree_map_only(torch.Tensor, by_address, (args, kwargs))
        if written:
            self.tape.steps.append(partial(func, *places_only[0], **places_only[1]))
            places = {argument.name: place for place, argument in enumerate(func._schema.arguments)}
            found = [kwargs[a.name] if a.name in kwargs else args[places[a.name]] for a in written]
            return found[0] if len(func._schema.returns) == 1 else tuple(found[: len(func._schema.returns)])
        result = func(*args, **kwargs)
        if not any(returned.alias_info for returned in func._schema.returns):
            made = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
            if "empty" not in func.name():
                self.tape.steps.append(partial(_again, func, *places_only, made))
            self.tape.memory += made
            for each in made:
                poison(each)
        return result


def _again(func: Any, args: Any, kwargs: Any, made: Sequence[torch.Tensor]) -> None:
    found = [each for each in tree_leaves(func(*args, **kwargs)) if isinstance(each, torch.Tensor)]
    for target, value in zip(made, found, strict=True):
        target.copy_(value)


def poison(tensor: torch.Tensor) -> None:
    """What a tensor holds that nothing has been written to."""
    tensor.fill_(torch.nan if tensor.is_floating_point() else 1)


@dataclass
class TapeRecorder:
    """Records for the machine of `driver`, on a stream of its own. refuses: whether nothing can be recorded.
    busy: whether the caller is recording."""

    driver: InterpretingDriver
    refuses: bool = False
    busy: bool = False
    tapes: list[Tape] = field(default_factory=list)

    def is_busy(self) -> bool:
        return self.busy

    def record(self, run: Callable[[], list[torch.Tensor]]) -> tuple[Tape, list[torch.Tensor]]:
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        tape = Tape()
        self.driver.tape = tape.steps
        try:
            with _Taping(tape):
                results = run()
        finally:
            self.driver.tape = None
        self.tapes.append(tape)
        return tape, results


def by_address(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, which is not kept alive."""
    memory = tensor.untyped_storage()
    if not memory.nbytes():
        return tensor
    flat = torch.frombuffer((ctypes.c_char * memory.nbytes()).from_address(memory.data_ptr()), dtype=torch.uint8)
    return torch.empty(0, dtype=tensor.dtype).set_(
        flat.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
    )


def interpreting_machine(
    driver: InterpretingDriver,
    tuner: Tuner | None = None,
    recorder: TapeRecorder | None = None,
    current_stream: Callable[[], int] = lambda: 7,
) -> GpuMachine:
    kernels = GpuKernelCache(TritonTarget.parse("cuda:sm_90"), driver, code_of)
    device = torch.device("cpu")
    return GpuMachine(device, kernels, contextlib.nullcontext, current_stream, ClockEvent, tuner, recorder)
