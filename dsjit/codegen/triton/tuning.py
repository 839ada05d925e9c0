"""The fastest of several ways to do one thing, measured on the device once and remembered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Protocol, TypeAlias

import torch

from dsjit.codegen.templates.attention import FusedAttention
from dsjit.codegen.templates.product import FusedProduct
from dsjit.codegen.triton.choices import Choices
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.planner import LibraryUnit
from dsjit.ir.graph import Arg, TensorType, Value, map_values
from dsjit.ir.kernel import Kernel
from dsjit.ir.print_graph import op_name

__all__ = ["Meter", "Run", "Tuner", "measured_preference", "saves_traffic"]

Run: TypeAlias = Callable[[], object]
"""Queues some work on the device."""

ROUNDS: Final = 5
"""Medians are taken of so many measurements of each candidate, taken in turns."""


class Meter(Protocol):
    """What measuring takes of a device. `identity`: of device, driver and versions, for what was measured to hold."""

    @property
    def identity(self) -> str: ...

    def allocate(self, type_: TensorType) -> torch.Tensor:
        """A tensor of numbers that are neither denormal nor infinite, on the device."""
        ...

    def microseconds(self, run: Run) -> float:
        """How long the device takes for it, once."""
        ...


@dataclass(slots=True)
class Tuner:
    """choices: what is known. measured: how many were measured by this object."""

    meter: Meter
    choices: Choices
    measured: int = 0

    def best(
        self, what: Sequence[str], runs: Sequence[Callable[[], Run]], prepare: Callable[[], object] = lambda: None
    ) -> int:
        """The number of the fastest of the candidates; the first where none can be run.

        what: tells what they compute and how, in full. runs: make them; they are not called for what is known. A
        candidate that cannot be compiled or launched (BackendError), that lacks memory or that a library refuses is
        out. prepare: is called before them. Raises torch.AcceleratorError where the device is lost.
        """
        key = sha256("\n".join((self.meter.identity, *what)).encode()).hexdigest()
        known = self.choices.get(key)
        if known is not None and 0 <= known < len(runs):
            return known
        prepare()
        ready: dict[int, Run] = {}
        for number, make in enumerate(runs):
            try:
                ready[number] = make()
                self.meter.microseconds(ready[number])  # what happens at a first run only
            except torch.AcceleratorError:
                raise
            except RuntimeError:  # BackendError is one
                ready.pop(number, None)
        times: dict[int, list[float]] = {number: [] for number in ready}
        for _ in range(ROUNDS):
            for number, run in ready.items():
                times[number].append(self.meter.microseconds(run))
        best = min(times, key=lambda number: sorted(times[number])[ROUNDS // 2], default=0)
        self.measured += 1
        self.choices.put(key, best)
        return best


def saves_traffic(choice: FusedProduct | FusedAttention) -> bool:
    """Without measuring: a product becomes a Kernel when something is fused with it that had to pass through memory,
    and matrix units do it, which libraries of exact float32 products can do without; attention does where it is written
    out, or has a mask."""
    if isinstance(choice, FusedAttention):
        return choice.saves_traffic
    (loop, *_) = choice.fused.kernel.blocks
    exact = getattr(loop.body[-1], "matrix", None) == "exact"
    operands = {value.type.dtype for value in choice.library.node.inputs()}
    return bool(choice.kernels) and not (exact and operands == {torch.float32})


class Kernels(Protocol):
    """What makes runs of Kernels: `GpuKernelCache`."""

    def trial(self, kernel: Kernel, fast: bool, buffers: Mapping[str, torch.Tensor], tuner: Tuner) -> Run: ...

    def texts(self, kernel: Kernel) -> tuple[str, ...]: ...


def measured_preference(tuner: Tuner, kernels: Kernels, fast: bool) -> Callable[[FusedProduct | FusedAttention], bool]:
    """Whether the Kernels, each by the fastest of its candidates, are faster than what they would stand for."""

    def prefers(choice: FusedProduct | FusedAttention) -> bool:
        tensors: dict[Value, torch.Tensor] = {}

        def tensor(value: Value) -> torch.Tensor:
            if value not in tensors:
                tensors[value] = tuner.meter.allocate(value.type)
            return tensors[value]

        def kernel(fused: FusedKernel) -> Run:
            params = zip(fused.kernel.params, fused.values, strict=True)
            return kernels.trial(fused.kernel, fast, {param.name: tensor(value) for param, value in params}, tuner)

        def call(unit: LibraryUnit) -> Run:
            node = unit.node
            args = [_filled(arg, tensor) for arg in node.args]
            keywords = {name: _filled(arg, tensor) for name, arg in node.kwargs.items()}
            return lambda: node.op(*args, **keywords)

        def library() -> Run:
            units = choice.replaced
            return _in_a_row([kernel(unit) if isinstance(unit, FusedKernel) else call(unit) for unit in units])

        ops = [op_name(unit.node.op) for unit in choice.replaced if isinstance(unit, LibraryUnit)]
        what = ("library or kernel", *ops, *[text for each in choice.replacing for text in kernels.texts(each.kernel)])
        runs = (library, lambda: _in_a_row([kernel(fused) for fused in choice.replacing]))
        return tuner.best(what, runs) == 1

    return prefers


def _in_a_row(runs: Sequence[Run]) -> Run:
    if len(runs) == 1:
        return runs[0]

    def run() -> None:
        for each in runs:
            each()

    return run


def _filled(arg: Arg, tensor: Callable[[Value], torch.Tensor]) -> Arg:
    return map_values(arg, tensor)
