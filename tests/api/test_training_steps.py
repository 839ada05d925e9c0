"""Whole steps of training in one jitted function: the loss, `.grad`, parameters and optimizer state are eager's."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dsjit
from dsjit.trace.training import gradients, open_numbers, optimizers
from tests.api.training import Net, adamw, assert_same, assert_same_result, batch, pair, plain


def clipped(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    return loss.detach(), norm


def clipped_and_told(model, optimizer, x, y):
    loss, norm = clipped(model, optimizer, x, y)
    return {"loss": loss.item(), "norm": norm.item()}


def set_to_zero(model, optimizer, x, y):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()
    return loss.item()


def accumulating(model, optimizer, x, y):
    optimizer.zero_grad()
    for part, target in zip(x.chunk(2), y.chunk(2), strict=True):
        (F.cross_entropy(model(part), target) / 2).backward()
    optimizer.step()


def left_to_the_next_call(model, optimizer, x, y):
    """Gradients accumulate from call to call."""
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def cleared_at_the_end(model, optimizer, x, y):
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def twice_through_one_graph(model, optimizer, x, y):
    optimizer.zero_grad()
    logits = model(x)
    F.cross_entropy(logits, y).backward(retain_graph=True)
    logits.square().mean().backward()
    optimizer.step()


def only_one_layer(model, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward(inputs=list(model.second.parameters()))
    optimizer.step()


STEPS = [
    plain, clipped, clipped_and_told, set_to_zero, accumulating, left_to_the_next_call, cleared_at_the_end,
    twice_through_one_graph, only_one_layer,
]  # fmt: skip

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, maximize=True),
    "nesterov foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "nesterov decay foreach": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, nesterov=True, foreach=True, weight_decay=0.1
    ),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": adamw,
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, maximize=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adagrad slowing": lambda p: torch.optim.Adagrad(p, lr=0.01, lr_decay=0.1, weight_decay=0.1, maximize=True),
    "adagrad foreach": lambda p: torch.optim.Adagrad(p, lr=0.01, foreach=True),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01, weight_decay=0.1),
    "adamax foreach": lambda p: torch.optim.Adamax(p, lr=0.01, foreach=True),
}

STEPS_AS_NUMBERS = {
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}
"""Optimizers whose Python computes with the step count."""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_takes_eagers_steps(name):
    eager, mine = pair(OPTIMIZERS[name])
    jitted = dsjit.jit(plain)
    for number in range(6):
        assert_same_result(jitted(*mine, *batch(number)), plain(*eager, *batch(number)))
        assert_same(mine, eager)
    assert jitted.counters.calls_eager == 0
    assert jitted.counters.traces <= 2  # one more when there are gradients and states


@pytest.mark.parametrize("name", STEPS_AS_NUMBERS)
def test_optimizers_that_are_not_compiled_well_are_right(name):
    eager, mine = pair(STEPS_AS_NUMBERS[name])
    jitted = dsjit.jit(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dsjit.DsjitWarning)
        for number in range(4):
            assert_same_result(jitted(*mine, *batch(number)), plain(*eager, *batch(number)))
            assert_same(mine, eager)


@pytest.mark.parametrize("step", STEPS)
def test_each_kind_of_step_is_eagers(step):
    eager, mine = pair(OPTIMIZERS["adamw"])
    jitted = dsjit.jit(step)
    for number in range(5):
        assert_same_result(jitted(*mine, *batch(number)), step(*eager, *batch(number)))
        assert_same(mine, eager)
    assert jitted.counters.calls_eager == 0
    assert jitted.counters.calls_compiled >= 3


@pytest.mark.parametrize("name", ["momentum", "adamw", "adagrad", "adamax"])
def test_schedules_of_the_learning_rate_need_no_new_trace(name):
    eager, mine = pair(OPTIMIZERS[name])
    schedules = [torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1, 8) for _, optimizer in (eager, mine)]
    jitted = dsjit.jit(plain)
    for number in range(8):
        jitted(*mine, *batch(number))
        plain(*eager, *batch(number))
        assert_same(mine, eager)
        for schedule in schedules:
            schedule.step()
    assert jitted.counters.traces == 2


def test_a_learning_rate_that_the_function_reads_itself_is_guarded():
    def step(model, optimizer, x, y):
        plain(model, optimizer, x, y)
        return optimizer.param_groups[0]["lr"] > 0.05

    _, mine = pair(OPTIMIZERS["sgd"])
    jitted = dsjit.jit(step)
    results = []
    for rate in (0.1, 0.1, 0.1, 0.01, 0.01):
        mine[1].param_groups[0]["lr"] = rate
        results.append(jitted(*mine, *batch(0)))
    assert results == [True, True, True, False, False]


def test_groups_have_learning_rates_of_their_own():
    def two_groups(model):
        return torch.optim.AdamW(
            [{"params": model.first.parameters(), "lr": 0.1}, {"params": model.second.parameters()}], lr=0.01
        )

    torch.manual_seed(0)
    first = Net()
    second = copy.deepcopy(first)
    eager, mine = (first, two_groups(first)), (second, two_groups(second))
    jitted = dsjit.jit(plain)
    for number in range(5):
        for _, optimizer in (eager, mine):
            optimizer.param_groups[number % 2]["lr"] *= 0.5
        jitted(*mine, *batch(number))
        plain(*eager, *batch(number))
        assert_same(mine, eager)
    assert jitted.counters.traces == 2


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_a_step_alone_is_compiled(name):
    eager, mine = pair(OPTIMIZERS[name])
    jitted = dsjit.jit(mine[1].step)
    for number in range(5):
        for model, optimizer in (eager, mine):
            optimizer.zero_grad()
            F.cross_entropy(model(batch(number)[0]), batch(number)[1]).backward()
        eager[1].step()
        jitted()
        assert_same(mine, eager)
    assert jitted.counters.calls_compiled == 3


def test_a_loss_that_was_differentiated_cannot_be_again():
    _, mine = pair(OPTIMIZERS["sgd"])
    jitted = dsjit.jit(plain)
    for number in range(4):
        loss = jitted(*mine, *batch(number))
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()
    assert jitted.counters.calls_compiled == 2


def test_an_average_of_the_weights_is_kept():
    def step(model, optimizer, x, y, average):
        loss = plain(model, optimizer, x, y)
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(parameter, 0.1)
        return loss

    eager, mine = pair(OPTIMIZERS["adamw"])
    averages = [copy.deepcopy(model) for model, _ in (eager, mine)]
    jitted = dsjit.jit(step)
    for number in range(5):
        step(*eager, *batch(number), averages[0])
        jitted(*mine, *batch(number), averages[1])
        assert_same((averages[1], mine[1]), (averages[1], mine[1]))
        for theirs, ours in zip(*(average.parameters() for average in averages), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert jitted.counters.calls_compiled == 3


def test_autograd_knows_that_parameters_were_written():
    _, (model, optimizer) = pair(OPTIMIZERS["adamw"])
    jitted = dsjit.jit(plain)
    for number in range(3):
        jitted(model, optimizer, *batch(number))
    kept = model(batch(0)[0]).sum()
    jitted(model, optimizer, *batch(3))
    assert jitted.counters.calls_compiled == 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


def test_hooks_on_parameters_are_part_of_the_step():
    def hooked(model):
        model.first.weight.register_hook(lambda grad: grad * 0.5)
        model.second.weight.register_post_accumulate_grad_hook(clamp)

    def clamp(parameter):
        parameter.grad.clamp_(-0.01, 0.01)

    eager, mine = pair(OPTIMIZERS["sgd"])
    jitted = dsjit.jit(plain)
    for number in range(6):
        if number == 3:
            hooked(eager[0])
            hooked(mine[0])
        jitted(*mine, *batch(number))
        plain(*eager, *batch(number))
        assert_same(mine, eager)


def test_gradients_that_flow_out_of_the_call_are_eagers():
    def step(y, w):
        (y * w).sum().backward()

    results = []
    jitted = dsjit.jit(step)
    for each in (step, jitted, jitted):
        x, w = torch.ones(3, requires_grad=True), torch.full((3,), 2.0, requires_grad=True)
        with warnings.catch_warnings(record=True):
            each(x * 3, w)
        results.append((x.grad, w.grad))
    for x_grad, w_grad in results[1:]:
        assert torch.equal(x_grad, results[0][0])
        assert torch.equal(w_grad, results[0][1])


def test_grad_that_is_read_and_replaced():
    def step(w, x):
        (w * x).sum().backward()
        before = w.grad
        w.grad = w.grad * 2
        return before, w.grad

    jitted = dsjit.jit(step)
    for each in (step, jitted):
        w = torch.ones(3, requires_grad=True)
        for _ in range(4):
            before, after = each(w, torch.ones(3))
            assert after is w.grad
        assert torch.equal(w.grad, torch.full((3,), 30.0))
        assert torch.equal(before, torch.full((3,), 15.0))
    assert jitted.counters.calls_compiled == 2


def test_frozen_and_tied_parameters():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.head = nn.Linear(4, 7)
            self.head.weight = self.table.weight

        def forward(self, x):
            return self.head(torch.tanh(self.frozen(self.table(x))))

    torch.manual_seed(0)
    first = Tied()
    second = copy.deepcopy(first)
    eager, mine = ((model, torch.optim.AdamW(model.parameters(), lr=0.01)) for model in (first, second))
    jitted = dsjit.jit(plain)
    for _ in range(4):
        tokens = torch.randint(0, 7, (6,))
        jitted(*mine, tokens, tokens)
        plain(*eager, tokens, tokens)
        assert_same(mine, eager)
    assert jitted.counters.calls_compiled == 2


def test_twenty_steps_give_eagers_losses():
    eager, mine = pair(OPTIMIZERS["adamw"])
    jitted = dsjit.jit(clipped)
    losses = [
        (jitted(*mine, *batch(number % 4))[0].item(), clipped(*eager, *batch(number % 4))[0].item())
        for number in range(20)
    ]
    assert [mine for mine, _ in losses] == pytest.approx([theirs for _, theirs in losses], rel=1e-4)
    assert jitted.counters.calls_compiled == 18


@pytest.mark.parametrize(
    "place",
    [
        (optimizers.UpdateWriter, "read"),
        (optimizers._Call, "is_known"),
        (optimizers.OptimizerWatch, "__enter__"),
        (gradients.GradientWatch, "on_backward"),
        (gradients.GradientWatch, "meet"),
        (open_numbers.OpenNumbers, "on_read"),
        (open_numbers.OpenNumbers, "number_in"),
        (open_numbers.OpenNumbers, "close"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
def test_whatever_fails_in_watching_a_step_is_no_concern_of_the_users(place, monkeypatch):
    def fail(*args):
        raise ValueError("injected")

    eager, mine = pair(OPTIMIZERS["adamw"])
    jitted = dsjit.jit(plain)
    for number in range(4):
        with monkeypatch.context() as patch:
            if number == 1:
                patch.setattr(*place, fail)
            assert_same_result(jitted(*mine, *batch(number)), plain(*eager, *batch(number)))
        assert_same(mine, eager)


@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
def test_an_update_that_raises_is_not_repeated_as_if_it_had_not():
    def step(model, optimizer, x, y):
        try:
            plain(model, optimizer, x, y)
        except RuntimeError:
            return "raised"

    def break_last_average(model, optimizer):
        optimizer.state[model.second.bias]["exp_avg"] = torch.zeros(5)

    eager, mine = pair(OPTIMIZERS["adamw"])
    jitted = dsjit.jit(step)
    for number in range(4):
        if number == 2:
            break_last_average(*eager)
            break_last_average(*mine)
        assert jitted(*mine, *batch(number)) == step(*eager, *batch(number))
        assert_same(mine, eager)
