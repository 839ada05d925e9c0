"""What a forward keeps of a large mask is its bits, and the backward has the mask."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dsjit
from dsjit.ir.verify_graph import verify_graph
from dsjit.ops.masks import draw_mask, pack_mask, unpack_mask
from dsjit.passes import pack_masks as module
from dsjit.passes.pack_masks import LARGE, pack_masks
from dsjit.passes.partition import partition
from dsjit.passes.reference import run_reference
from tests.graphs import GraphRecorder, example, graph_from_text, printed
from tests.passes.test_partition import joint_of

aten = torch.ops.aten


def masked(shape, readers=1):
    """The result is dropped from; so are as many gradients."""
    r = GraphRecorder()
    x, tangent = r.input(shape), r.input(shape)
    mask = r.call(draw_mask, shape, 0.7)
    gradients = [tangent]
    for _ in range(readers):
        gradients.append(r.aten.mul.Tensor(r.aten.exp.default(gradients[-1]), mask))
    return joint_of(r.graph(r.aten.mul.Tensor(x, mask), gradients[-1]), primals=1)


def ops(graph):
    return [node.op for node in graph.nodes]


def test_example_of_the_docstring():
    before, after = example(module.__doc__)
    halves = pack_masks(partition(joint_of(graph_from_text(before), primals=1)), large=16)
    assert f"{printed(halves.forward)}\n{printed(halves.backward)}" == after.strip()


@pytest.mark.parametrize("readers", [1, 2])
def test_the_backward_unpacks_once_before_the_first_reader(readers):
    halves = pack_masks(partition(masked([64, 65], readers)))
    verify_graph(halves.forward, run_ops=True)
    verify_graph(halves.backward, run_ops=True)
    assert ops(halves.forward)[-1] is pack_mask
    assert ops(halves.backward).count(unpack_mask) == 1
    assert ops(halves.backward).index(unpack_mask) == ops(halves.backward).index(aten.mul.Tensor) - 1
    assert [value.type.nbytes for value in halves.own] == [64 * 65 // 8]


def test_both_halves_give_what_they_gave():
    plain = partition(masked([64, 65], 2))
    packed = pack_masks(plain)
    x, tangent = torch.randn(64, 65), torch.randn(64, 65)
    found = []
    for halves in (plain, packed):
        torch.manual_seed(3)
        result, kept = run_reference(halves.forward, [x])
        found.append((result, *run_reference(halves.backward, [kept, tangent])))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_small_masks_stay_bytes():
    halves = partition(masked([LARGE - 1]))
    assert pack_masks(halves) is halves


def test_a_mask_that_the_caller_has_stays():
    r = GraphRecorder()
    x, mask, tangent = r.input([64, 65]), r.input([64, 65], torch.bool), r.input([64, 65])
    joint = joint_of(r.graph(r.aten.mul.Tensor(x, mask), r.aten.mul.Tensor(tangent, mask)), primals=2)
    halves = partition(joint)
    assert pack_masks(halves) is halves


@pytest.mark.parametrize("budget", [None, "64MiB"])
def test_a_network_with_dropout_trains_as_in_eager_and_keeps_bits(budget):
    network = nn.Sequential(nn.Linear(16, 128), nn.GELU(), nn.Dropout(0.2), nn.Linear(128, 100), nn.ReLU())
    jitted, x = dsjit.jit(copy.deepcopy(network), memory_budget=budget), torch.randn(50, 16)
    for seed in range(4):
        for model in (network, jitted):
            model.zero_grad()
            torch.manual_seed(seed)
            model(x).sum().backward()
        for mine, theirs in zip(jitted.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)
    masks = [kept for kept in dsjit.explain(jitted)(x).kept if kept.op == "draw_mask"]
    assert [kept.nbytes for kept in masks] == [50 * 128 // 8]
