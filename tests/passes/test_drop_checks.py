"""Checks whose outcome is settled."""

from __future__ import annotations

import pytest
import torch

from dsjit.ir.graph import Check, Node
from dsjit.ops.strided import strided_view
from dsjit.passes.drop_checks import drop_checks
from tests.graphs import GraphRecorder, tensor_type


def constant(r):
    return r.constant(torch.ones(2))


def computed(r):
    return r.aten.neg.default(r.aten.arange.default(2, dtype=torch.float32))


def from_an_input(r):
    return r.aten.neg.default(r.inputs[0])


def random(r):
    return r.aten.neg.default(r.aten.rand.default([2]))


def undefined(r):
    return r.aten.empty.memory_format([2])


def foreign(r):
    value = r.value(tensor_type([2]))
    r.nodes.append(Node(strided_view, (r.constant(torch.ones(2)), (2,), (1,)), {}, (value,)))
    return value


@pytest.mark.parametrize(
    ("make", "count"),
    [(constant, 0), (computed, 0), (from_an_input, 1), (random, 1), (undefined, 1), (foreign, 1)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_only_what_may_change_is_checked(make, count):
    r = GraphRecorder()
    x = r.input([2])
    graph = r.graph(x, checks=(Check(make(r), torch.ones(2)),))
    assert len(drop_checks(graph).checks) == count
