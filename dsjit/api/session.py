"""What all jitted objects of a process share: kernels, counters, environment, stance, and who is tracing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import torch

from dsjit.api.compile import Compilation
from dsjit.api.open_calls import SizeMarks
from dsjit.api.stance import Stances
from dsjit.api.stats import Registry
from dsjit.api.training import Training
from dsjit.codegen.llvm.engine import KernelCache
from dsjit.codegen.triton.load import gpu_machine
from dsjit.codegen.triton.machine import GpuMachine
from dsjit.config import Environment
from dsjit.passes.fuel import Fuel

__all__ = ["Session"]


@dataclass(slots=True)
class Session:
    """Shared state, handed to each jitted object when it is made.

    fuel: of the whole process, when rewrites are counted (DSJIT_FUEL) or written down (DSJIT_DUMP).
    gpus: by device, when kernels were wanted there.
    programs, trainings: by numerics and structure, as long as they are used. on_compiled: are told each new one.
    depths: of the traces that threads are in, one inside the other.
    """

    environment: Environment
    kernels: KernelCache = field(default_factory=KernelCache)
    gpus: dict[torch.device, GpuMachine] = field(default_factory=dict)
    programs: WeakValueDictionary[Hashable, Compilation] = field(default_factory=WeakValueDictionary)
    trainings: WeakValueDictionary[Hashable, Training] = field(default_factory=WeakValueDictionary)
    on_compiled: tuple[Callable[[Compilation], None], ...] = ()
    registry: Registry = field(default_factory=Registry)
    marks: SizeMarks = field(default_factory=SizeMarks)
    depths: dict[int, int] = field(default_factory=dict)
    stances: Stances = field(init=False)
    fuel: Fuel | None = field(init=False)

    def __post_init__(self) -> None:
        counted = self.environment.fuel is not None or self.environment.dump is not None
        self.fuel = Fuel(self.environment.fuel) if counted else None
        self.stances = Stances(self.environment.stance)

    def gpu(self, device: torch.device) -> GpuMachine:
        """What compiles and runs kernels on `device`. Raises BackendError and MissingPackageError."""
        found = self.gpus.get(device)
        return found if found is not None else self.gpus.setdefault(device, gpu_machine(device))

    def is_tracing(self, thread: int | None = None) -> bool:
        """Whether this thread, or the one of that identifier, is inside a trace."""
        return (threading.get_ident() if thread is None else thread) in self.depths

    @contextmanager
    def tracing(self) -> Iterator[None]:
        thread = threading.get_ident()
        before = self.depths.get(thread, 0)
        self.depths[thread] = before + 1
        try:
            yield
        finally:
            if before:
                self.depths[thread] = before
            else:
                del self.depths[thread]
