"""What training and inference scripts keep beside the computation: counters, schedules, progress, timers."""

from __future__ import annotations

import torch

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


@program(traces=None, grad=True)
def a_loss_is_scaled_by_a_number_from_a_tensor(play: Play) -> None:
    weight = whole(3).requires_grad_()

    def step(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        weight.grad = None
        loss = (weight * x * scale.item()).sum()
        loss.backward()
        return loss.detach()

    jitted = play.jit(step)
    for scale in (2.0, 3.0, 4.0, 3.0):
        play(jitted, whole(3), torch.tensor(scale))
        play.note("gradient", weight.grad)
