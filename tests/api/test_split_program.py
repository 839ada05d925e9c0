"""A whole training step of some size runs as two Programs, and does what eager does."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

import dsjit
from dsjit.api.entry import jitted_of


def network():
    torch.manual_seed(0)
    blocks = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 16 * 16, 10))


def step_of(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(x, labels):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step


X, LABELS = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))


def test_losses_parameters_and_statistics_are_those_of_eager():
    model = network()
    eager, jitted = step_of(copy.deepcopy(model)), dsjit.jit(step_of(model))
    for _ in range(4):
        losses = []
        for step in (eager, jitted):
            torch.manual_seed(1)
            losses.append(step(X, LABELS))
        torch.testing.assert_close(losses[1], losses[0], rtol=2e-5, atol=2e-6)
    twin = next(cell.cell_contents for cell in eager.__closure__ if isinstance(cell.cell_contents, nn.Module))
    for one, other in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_free_is_computed_again_in_the_memory_of_the_forward():
    jitted = dsjit.jit(step_of(network()))
    for _ in range(5):
        jitted(X, LABELS)
    pairs = [tree.compilations for tree in jitted_of(jitted).trees]
    ran = [(forward, backward) for forward, backward in pairs if forward.program.frames]
    assert ran
    for forward, backward in ran:
        kept = sum(value.type.nbytes for value in forward.optimized.outputs)
        assert kept < 15 * 2**20  # the convolution's result, and what the pooling made: not the 8 MiB of the ReLU
        (frame,) = forward.program.frames
        assert not backward.program.frames
        assert any(program is backward.program for program, _ in frame.guests)


def test_a_call_without_a_backward_stays_one_program():
    model = network().eval()
    jitted = dsjit.jit(lambda x: model(x))
    with torch.no_grad():
        jitted(X)
    assert len(jitted_of(jitted).trees[-1].compilations) == 1
