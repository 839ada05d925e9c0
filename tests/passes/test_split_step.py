"""A whole step is cut where its backward begins; what is free is computed again."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from dsjit.ir.graph import Write
from dsjit.ir.verify_graph import verify_graph
from dsjit.passes import split_step as module
from dsjit.passes.reference import run_reference
from dsjit.passes.split_step import split_step
from tests.graphs import GraphRecorder, example, graph_from_text, printed


def unchanged(graph):
    return graph


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(module, "WORTH_A_SPLIT", 1)


def step():
    """A step that draws, writes to its second input, and returns what the forward made."""
    r = GraphRecorder()
    x, w = r.input([4, 8]), r.input([8, 8])
    hidden = r.aten.exp.default(r.aten.mm.default(x, w))
    mask = r.aten.bernoulli.default(r.aten.sigmoid.default(hidden))
    y = r.aten.tanh.default(hidden)
    slope = r.aten.tanh_backward.default(r.aten.mul.Tensor(y, mask), y)
    moved = r.aten.sub.Tensor(w, r.aten.mm.default(r.aten.t.default(x), r.aten.mul.Tensor(slope, hidden)))
    graph = r.graph(r.aten.sum.default(y))
    return replace(graph, writes=(Write(w, moved),))


def test_example_of_the_docstring():
    before, after = example(module.__doc__)
    halves = split_step(graph_from_text(before), unchanged)
    assert f"{printed(halves.forward)}\n{printed(halves.backward)}" == after.strip()


def test_what_is_drawn_is_drawn_once_and_what_is_written_is_written_at_the_end():
    graph = step()
    halves = split_step(graph, unchanged)
    verify_graph(halves.forward), verify_graph(halves.backward)
    assert torch.ops.aten.bernoulli.default not in [node.op for node in halves.backward.nodes]
    assert not halves.forward.writes and halves.backward.writes == graph.writes
    assert halves.backward.outputs == graph.outputs


def test_both_halves_together_do_what_the_step_does():
    graph = step()
    halves = split_step(graph, unchanged)
    x, w = torch.randn(4, 8), torch.randn(8, 8)
    found = []
    for run in (
        functools.partial(run_reference, graph),
        lambda inputs: run_reference(halves.backward, [*inputs, *run_reference(halves.forward, inputs)]),
    ):
        torch.manual_seed(3)
        target = w.clone()
        found.append([*run([x, target]), target])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_graph_without_a_backward_stays_whole():
    r = GraphRecorder()
    assert split_step(r.graph(r.aten.exp.default(r.input([4]))), unchanged) is None


def test_a_step_that_saves_little_stays_whole(monkeypatch):
    monkeypatch.setattr(module, "WORTH_A_SPLIT", 2**20)
    assert split_step(step(), unchanged) is None
