"""Training on a GPU, on a machine that stands for one: recordings, memory and streams."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.codegen.program import Program
from dsjit.codegen.triton.replay import ReplayedProgram
from dsjit.passes import split_step
from tests.api.gpus import StandInGpu, gpu

__all__ = ["gpu"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.gelu(self.norm(self.first(x)))).log_softmax(-1)


def batch(seed: int) -> torch.Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))


def replays(gpu: StandInGpu) -> list[int]:
    return [tape.replays for tape in gpu.recorder.tapes]


def test_a_forward_and_its_backward_are_recorded(gpu: StandInGpu) -> None:
    torch.manual_seed(0)
    model = Net()
    twin = copy.deepcopy(model)
    jitted = dsjit.jit(lambda x: model(x), backend="triton", cuda_graphs=True)
    batches = [batch(seed) for seed in range(8)]
    for x in batches:
        for run in (jitted, twin):
            (run(x)[:, 0].square().sum()).backward()
    assert sum(replays(gpu)) == 6 + 5
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_gradients_that_accumulate_and_results_that_are_kept_are_not_overwritten(gpu: StandInGpu) -> None:
    """Two forwards before their backwards, one of which runs twice; results live on."""
    torch.manual_seed(1)
    model = Net()
    twin = copy.deepcopy(model)
    jitted = dsjit.jit(lambda x: model(x), backend="triton", cuda_graphs=True)
    kept = []
    for round in range(6):
        for run in (jitted, twin):
            first, second = (run(batch(2 * round + each)) for each in range(2))
            first.square().sum().backward(retain_graph=True)
            second.exp().sum().backward()
            first.exp().sum().backward()
            kept.append((first, second, [p.grad.clone() for p in (twin if run is twin else model).parameters()]))
        model.zero_grad(), twin.zero_grad()
    assert sum(replays(gpu)) > len(gpu.recorder.tapes) > 2
    for mine, other in zip(kept[::2], kept[1::2], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_what_hooks_keep_of_a_call_is_not_overwritten_by_the_next_ones(gpu: StandInGpu) -> None:
    torch.manual_seed(2)
    model = Net()
    jitted = dsjit.jit(lambda x: model(x), backend="triton", cuda_graphs=True)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen.append((tensor.detach(), tensor.detach().clone()))
        return tensor

    jitted(batch(0))
    for seed in range(6):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = jitted(batch(seed)).sum()
        loss.backward()
    assert sum(replays(gpu)) > 1
    for tensor, before in seen:
        assert torch.equal(tensor, before)


def test_a_forward_that_draws_runs_as_always_and_draws_what_eager_draws(gpu: StandInGpu) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(Net(), nn.Dropout(0.5))
    twin = copy.deepcopy(model)
    jitted = dsjit.jit(lambda x: model(x), backend="triton", cuda_graphs=True)
    for seed in range(6):
        found = []
        for run in (jitted, twin):
            torch.manual_seed(seed)
            found.append(run(batch(seed)))
            found[-1].square().sum().backward()
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_each_stream_has_recordings_and_memory_of_its_own(gpu: StandInGpu) -> None:
    torch.manual_seed(4)
    model = Net()
    twin = copy.deepcopy(model)
    jitted = dsjit.jit(lambda x: model(x), backend="triton", cuda_graphs=True)
    batches = [batch(seed) for seed in range(10)]
    for number, x in enumerate(batches):
        gpu.stream = number % 2
        for run in (jitted, twin):
            run(x).square().sum().backward()
    assert sum(replays(gpu)) == (3 + 4) + (2 + 3)
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[torch.Tensor], torch.Tensor]:
    def step(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x)[:, 0].square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def assert_same_steps(
    make: Callable[[nn.Module], torch.optim.Optimizer], steps: int = 8, **options: object
) -> Callable[..., object]:
    """Of both, the losses, parameters, gradients and states, with another learning rate for each step."""
    torch.manual_seed(5)
    model = Net()
    twin = copy.deepcopy(model)
    optimizers = make(model), make(twin)
    jitted, eager = dsjit.jit(step_of(model, optimizers[0]), backend="triton", **options), step_of(twin, optimizers[1])
    for seed in range(steps):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + seed)
        torch.testing.assert_close(jitted(batch(seed)), eager(batch(seed)), rtol=1e-4, atol=1e-6)
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)
        states = (optimizer.state[each] for optimizer, each in zip(optimizers, (mine, other), strict=True))
        torch.testing.assert_close(*states, rtol=1e-4, atol=1e-6)
    assert jitted_of(jitted).counters.calls_compiled == steps - 2
    return jitted


@pytest.mark.parametrize("make", [sgd, adamw])
def test_a_whole_step_is_recorded_and_writes_to_parameters_and_states(
    gpu: StandInGpu, make: Callable[[nn.Module], torch.optim.Optimizer]
) -> None:
    """The rate and the step counts are in the host's memory, and are other ones in each replay."""
    jitted = assert_same_steps(make, cuda_graphs=True)
    host, device = jitted_of(jitted).trees[0].compilations
    assert isinstance(host.program, Program) and isinstance(device.program, ReplayedProgram)
    assert sum(replays(gpu)) > 3


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_large_step_is_two_programs_in_one_arena(
    gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch, cuda_graphs: bool
) -> None:
    monkeypatch.setattr(split_step, "WORTH_A_SPLIT", 1)
    jitted = assert_same_steps(adamw, cuda_graphs=cuda_graphs)
    _, forward, backward = jitted_of(jitted).trees[0].compilations
    if cuda_graphs:
        assert isinstance(forward.program, ReplayedProgram) and isinstance(backward.program, ReplayedProgram)
        assert sum(replays(gpu)) > 6
        return
    host, guest = forward.program.streams[gpu.stream], backward.program.streams[gpu.stream]
    (frame,) = host.frames
    assert not guest.frames and [program for program, _ in frame.guests] == [guest]
