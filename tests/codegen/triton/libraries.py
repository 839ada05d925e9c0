"""Libraries of a GPU that stands for one: the ops of attention, and how long each takes, made up."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsjit.codegen.templates.attention_backends import BACKENDS, AttentionBackend
from dsjit.codegen.triton.choices import Choices
from dsjit.codegen.triton.machine import GpuMachine
from dsjit.codegen.triton.tuning import Run, Tuner
from dsjit.ir.graph import TensorType
from tests.codegen.triton.machines import InterpretingDriver, interpreting_machine

FLASH, CUDNN, EFFICIENT = (
    replace(backend, is_enabled=lambda: True, is_usable=lambda params: True) for backend in BACKENDS
)
"""As CUDA has them, for operands on a CPU."""


@dataclass
class OpMeter:
    """times: of ops that compute attention, by library; without such an op, 99. called: every op."""

    times: dict[str, float]
    called: list[str] = field(default_factory=list)
    identity: str = "device 1"

    def allocate(self, type_: TensorType) -> torch.Tensor:
        return torch.empty_strided(type_.shape, type_.strides, dtype=type_.dtype).fill_(1)

    def microseconds(self, run: Run) -> float:
        with OpsCalled() as seen:
            run()
        self.called += seen.names
        times = [time for name in seen.names for part, time in self.times.items() if f"{part}_attention" in name]
        return sum(times) if times else 99.0


class OpsCalled(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def measuring_machine(
    meter: OpMeter, path: Path, backends: tuple[AttentionBackend, ...] = (FLASH, CUDNN, EFFICIENT)
) -> GpuMachine:
    tuner = Tuner(meter, Choices(path / "choices.json"))
    return replace(interpreting_machine(InterpretingDriver(), tuner), attention=backends)
