"""Weights that an embedding shares with something else get one gradient, in the memory of the other's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd.profiler import profile
from torch.nn import functional as F

import dsjit
from dsjit.passes.add_embedding_gradients import add_embedding_gradients
from tests.graphs import GraphRecorder

WORDS, FEATURES = 12_000, 1024
MIB = 2**20


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, FEATURES)

    def forward(self, ids):
        return F.cross_entropy(self.words(ids) @ self.words.weight.t(), ids.roll(1))


class Twice(Tied):
    def forward(self, ids):
        return (self.words(ids) * self.words(ids.flip(0))).square().mean()


@pytest.mark.parametrize("kind", [Tied, Twice])
def test_gradients_are_eagers_and_nothing_else_of_their_size_is_made(kind):
    torch.manual_seed(0)
    network, ids = kind(), torch.randint(0, 40, (64,))
    twin = copy.deepcopy(network)
    call = dsjit.jit(network)
    for _ in range(2):
        network.zero_grad()
        with profile(profile_memory=True) as recorded:
            call(ids).backward()
    twin(ids).backward()
    torch.testing.assert_close(network.words.weight.grad, twin.words.weight.grad, rtol=1e-5, atol=1e-7)
    sizes = [event.nbytes() for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    assert [size for size in sizes if size >= 8 * MIB] == [network.words.weight.nbytes]


def graph_of(returns_both=False, rows=4):
    r = GraphRecorder()
    other, gradient, ids = r.input([64, 8]), r.input([rows, 8]), r.input([rows], torch.int64)
    dense = r.aten.embedding_dense_backward.default(gradient, ids, 64, -1, False)
    total = r.aten.add.Tensor(other, dense)
    return r.graph(*((total, dense) if returns_both else (total,)))


@pytest.mark.parametrize(("options", "stays"), [({}, False), ({"returns_both": True}, True), ({"rows": 32}, True)])
def test_a_gradient_that_is_read_elsewhere_or_has_many_rows_stays(options, stays):
    graph = graph_of(**options)
    assert (add_embedding_gradients(graph) is graph) is stays
