"""A call and its backward keep to `memory_budget`: the same gradients, less memory, as much as was predicted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd.profiler import profile
from torch.nn import functional as F

import dsjit
from dsjit.api.entry import jitted_of

WIDTH = 192


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(F.dropout(F.gelu(self.up(self.norm(x))), 0.1, self.training))


def model(layers=12):
    torch.manual_seed(0)
    return nn.Sequential(*[Block() for _ in range(layers)])


X = torch.randn(1024, WIDTH)


def loss_of(network, x):
    return network(x).square().mean()


def gradients(network, call):
    network.zero_grad()
    torch.manual_seed(1)
    call(network, X).backward()
    return [parameter.grad for parameter in network.parameters()]


def plan_of(call, network):
    return dsjit.explain(call)(network, X).training


def measured_peak(network, call):
    """Bytes that the allocator of torch handed out at once, at most, in one call with its backward."""
    network.zero_grad()
    with profile(profile_memory=True) as recorded:
        call(network, X).backward()
    alive = peak = 0
    for event in recorded.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def arenas(call):
    """Bytes that the Programs hold from call to call."""
    programs = [compilation.program for tree in jitted_of(call).trees for compilation in tree.compilations]
    return sum(frame.arena.untyped_storage().nbytes() for program in programs for frame in program.frames)


@pytest.fixture(scope="module")
def unlimited():
    """The plan when nothing is computed again."""
    return plan_of(dsjit.jit(loss_of, memory_budget="100GiB"), model())


@pytest.fixture(scope="module")
def limited(unlimited):
    """A network, and a call of it that takes a fifth less."""
    return model(), dsjit.jit(loss_of, memory_budget=int(0.8 * unlimited.peak))


def test_nothing_is_computed_again_when_the_budget_is_large(unlimited):
    assert (unlimited.recomputed, unlimited.seconds, unlimited.budget) == (0, 0.0, 100 * 2**30)


def test_less_memory_is_taken_for_more_time(unlimited, limited):
    network, call = limited
    plan = plan_of(call, network)
    assert plan.peak <= plan.budget < unlimited.peak
    assert plan.kept < unlimited.kept
    assert plan.seconds > 0 and 0 < plan.recomputed < plan.segments


def test_gradients_are_those_without_a_budget(limited):
    network, call = limited
    expected = gradients(copy.deepcopy(network), loss_of)
    plan_of(call, network)
    for actual, eager in zip(gradients(network, call), expected, strict=True):
        torch.testing.assert_close(actual, eager, rtol=2e-5, atol=2e-6)


def test_the_predicted_peak_is_the_measured_one(limited):
    network, call = limited
    predicted = plan_of(call, network).peak
    measured_peak(network, call)
    assert abs(measured_peak(network, call) + arenas(call) - predicted) < 0.1 * predicted


def convolutions():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(12)]
    return nn.Sequential(*blocks), torch.randn(8, 16, 32, 32)


def test_convolutions_with_batch_norm_are_computed_again():
    network, x = convolutions()
    whole = dsjit.explain(dsjit.jit(loss_of, memory_budget="1GiB"))(network, x).training
    call = dsjit.jit(loss_of, memory_budget=int(0.8 * whole.peak))
    plan = dsjit.explain(call)(network, x).training
    assert plan.recomputed and plan.peak <= 0.8 * whole.peak and plan.kept < 0.7 * whole.kept
    twin = copy.deepcopy(network)
    call(network, x).backward()
    loss_of(twin, x).backward()
    for one, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_an_impossible_budget_is_refused_with_the_smallest_that_works():
    network = model(2)
    with pytest.raises(dsjit.MemoryBudgetError, match="memory_budget=1000 bytes") as refused:
        dsjit.jit(loss_of, memory_budget=1000)(network, X)
    smallest = int(str(refused.value).split("use memory_budget=")[1].split()[0])
    assert plan_of(dsjit.jit(loss_of, memory_budget=smallest), network).peak <= smallest


def test_explain_tells_the_plan_and_what_is_kept(limited):
    network, call = limited
    told = str(dsjit.explain(call)(network, X))
    assert "memory budget" in told and "parts of the forward are computed again" in told
    assert "computed again in the backward:" in told and " ops, about " in told
    assert "kept for the backward" in told and "test_memory_budget.py" in told


@pytest.fixture(scope="module")
def plain():
    """A network, and a call of it without a budget that ran forward and backward."""
    network, call = model(4), dsjit.jit(loss_of)
    for _ in range(2):
        gradients(network, call)
    return network, call


def test_without_a_budget_a_step_takes_less_than_eager_and_what_explain_tells(plain):
    network, call = plain
    told = plan_of(call, network)
    assert told.budget is None and told.recomputed == 0
    measured = measured_peak(network, call) + arenas(call)
    assert abs(measured - told.peak) < 0.1 * told.peak
    assert measured < 0.75 * measured_peak(network, loss_of)


def test_what_is_kept_is_freed_while_the_backward_runs_unless_the_graph_is_retained(plain):
    network, call = plain
    network.zero_grad()
    loss = call(network, X)
    loss.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in network.parameters()]
    loss.backward()
    for parameter, gradient in zip(network.parameters(), once, strict=True):
        assert torch.equal(parameter.grad, 2 * gradient)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_a_budget_is_nothing_to_a_call_without_gradients():
    with torch.no_grad():
        assert dsjit.jit(loss_of, memory_budget=1)(model(1), X).grad_fn is None


def test_images_that_are_kept_in_channels_last_order_are_told():
    torch.manual_seed(0)
    network = nn.Sequential(*[nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(3)])
    x = torch.randn(2, 16, 12, 12)
    told = dsjit.explain(dsjit.jit(loss_of))(network, x).kept
    assert {kept.op for kept in told if kept.shape == tuple(x.shape)} >= {"aten.relu.default"}
