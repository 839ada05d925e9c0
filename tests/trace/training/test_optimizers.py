"""Updates of parameters that are not where their step counts are: on a GPU, these are in the host's memory."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import dsjit
from dsjit.trace.capture import capture
from dsjit.trace.training import optimizers
from tests.api.test_training_steps import OPTIMIZERS
from tests.api.training import Net, assert_same, batch, pair, plain


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - {"rmsprop"}))
def test_counts_that_are_taken_together_give_what_eager_gives(name, monkeypatch):
    monkeypatch.setattr(optimizers, "_is_elsewhere", lambda step, param: True)
    eager, mine = pair(OPTIMIZERS[name])
    jitted = dsjit.jit(plain)
    for number in range(6):
        for _, optimizer in (eager, mine):
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + number)
        torch.testing.assert_close(jitted(*mine, *batch(number)), plain(*eager, *batch(number)), rtol=1e-4, atol=1e-6)
        assert_same(mine, eager)
    assert jitted.counters.calls_compiled == 4


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adagrad slowing", "adamax", "momentum"])
def test_one_tensor_goes_to_the_device_of_the_parameters_and_one_for_their_rate(name):
    """The device without memory stands for another one than the host's."""
    model = Net().to("meta")
    optimizer = OPTIMIZERS[name](model.parameters())

    def step(x):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()

    x = torch.empty(5, 6, device="meta")
    for _ in range(2):
        captured = capture(step, (x,), {}, "step")
    graph = captured.segments[0].graph
    moved = [
        node.output.type.shape
        for node in graph.nodes
        if node.op is torch.ops.aten._to_copy.default and node.kwargs.get("device") == x.device
    ]
    numbers = {"adam": 2, "amsgrad": 2, "adagrad slowing": 1, "adamax": 1, "momentum": 0}[name]
    assert Counter(moved)[(numbers, 4)] == bool(numbers)
    assert all(shape in ((numbers, 4), ()) for shape in moved)
    assert not any(value.type.device == x.device and not value.type.shape for value in graph.inputs)
    written = Counter((write.target.type.device.type, write.value.type.device.type) for write in graph.writes)
    assert set(written) == ({("meta", "meta"), ("cpu", "cpu")} if numbers else {("meta", "meta")})
