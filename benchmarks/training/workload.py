"""What a training workload is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from benchmarks.contenders import Contender
from benchmarks.workloads.workload import Arguments

__all__ = ["Trainee", "TrainingWorkload"]

MakeOptimizer: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]

MODEL_SEED, INPUT_SEED = 20, 30
LARGEST_NORM = 1.0
"""Of all gradients together, where a step clips them."""


@dataclass(frozen=True, slots=True)
class TrainingWorkload:
    """A model and its loss, one batch, an optimizer. Everything is float32.

    `model()` makes a module that maps the batch `inputs()` to a loss. What is compiled, and timed, is the forward with
    the backward behind it; the optimizer, which runs eagerly, is for the loss curves. With `whole_step`, forward,
    backward, clipping and the optimizer's update are one function, which is compiled and timed.

    `draws`: dropout draws random numbers. `curve`: steps of training whose losses are compared. Of eager's bytes, at
    most these shares are promised: `saved`, of what the forward leaves for the backward; `peak`, of what a step takes
    at most. None promises nothing.
    """

    name: str
    title: str
    shape: str
    model: Callable[[], nn.Module]
    inputs: Callable[[], Arguments]
    optimizer: MakeOptimizer
    whole_step: bool = False
    draws: bool = False
    curve: int = 20
    saved: float | None = None
    peak: float | None = None

    def build(self) -> tuple[nn.Module, Arguments]:
        """A new model in training mode with its batch: the same numbers on every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(MODEL_SEED)
            model = self.model()
            torch.manual_seed(INPUT_SEED)
            inputs = self.inputs()
        return model.train(), inputs


class Trainee:
    """A model that one contender trains.

    `step()` is what is timed: forward and backward, or the whole step. `gradients()` are those of its leaves.
    """

    def __init__(self, workload: TrainingWorkload, model: nn.Module, inputs: Arguments) -> None:
        self.workload = workload
        self.model = model
        self.inputs = inputs
        self.optimizer = workload.optimizer(model.parameters())
        self.loss: Callable[..., Tensor] = self._whole_step if workload.whole_step else model

    def compile(self, contender: Contender) -> None:
        """What `step` calls is compiled from now on, when it is first called."""
        self.loss = contender.compile(self.loss)

    def _whole_step(self, *inputs: Any) -> Tensor:
        self.optimizer.zero_grad()
        loss: Tensor = self.model(*inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_NORM)
        self.optimizer.step()
        return loss.detach()

    def forward(self) -> Tensor:
        """The loss, before its backward. Not for whole steps."""
        return self.loss(*self.inputs)

    def step(self) -> Tensor:
        """The loss, after its backward."""
        loss = self.forward()
        if not self.workload.whole_step:
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def train(self, steps: int) -> list[float]:
        """The losses of so many steps with the optimizer, from what the parameters are."""
        losses = []
        for _ in range(steps):
            self.clear_gradients()
            losses.append(float(self.step()))
            if not self.workload.whole_step:
                self.optimizer.step()
        return losses

    def leaves(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that gets a gradient, by name."""
        yield from self.model.named_parameters()
        for number, leaf in enumerate(tree_leaves(self.inputs)):
            if leaf.requires_grad:
                yield f"input {number}", leaf

    def clear_gradients(self) -> None:
        for _, leaf in self.leaves():
            leaf.grad = None

    def gradients(self) -> dict[str, Tensor]:
        return {name: leaf.grad for name, leaf in self.leaves() if leaf.grad is not None}

    @torch.no_grad()
    def reset(self, nudge: bool = False) -> None:
        """Parameters and buffers as they were built, in place, and an optimizer that has seen nothing.

        nudge: half of all parameters become the next float, away from zero.
        """
        self.clear_gradients()
        initial = self.workload.build()[0].state_dict()
        generator = torch.Generator().manual_seed(MODEL_SEED)
        for name, tensor in self.model.state_dict().items():
            tensor.copy_(initial[name])
        for parameter in self.model.parameters() if nudge else ():
            moved = torch.rand(parameter.shape, generator=generator) < 0.5
            outwards = torch.full_like(parameter, torch.inf).copysign(parameter)
            parameter.copy_(torch.where(moved, parameter.nextafter(outwards), parameter))
        for state in self.optimizer.state.values():
            for entry in state.values():
                if isinstance(entry, Tensor):
                    entry.zero_()
