"""A backward for results of which some get no gradient."""

from __future__ import annotations

import torch

from dsjit.passes import undefined_gradients as module
from dsjit.passes.reference import run_reference
from dsjit.passes.undefined_gradients import without_gradients
from tests.graphs import GraphRecorder, example, graph_from_text, printed


def test_example_of_the_docstring():
    before, after = example(module.__doc__)
    graph = graph_from_text(before)
    tangents = graph.inputs[1:]
    result, places = without_gradients(graph, tangents, tangents[:1])
    assert printed(result) == after.strip()
    assert places == (None, 0)


def test_an_operand_that_is_missing_is_zero_where_others_are_not():
    r = GraphRecorder()
    first, second = r.input([2]), r.input([2])
    joined = r.aten.cat.default([first, second])
    graph, places = without_gradients(r.graph(joined), [first, second], [first])
    (result,) = run_reference(graph, [torch.ones(2)])
    assert places == (0,) and torch.equal(result, torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_nothing_is_left_when_all_are_missing():
    r = GraphRecorder()
    x, tangent = r.input([2]), r.input([2])
    graph, places = without_gradients(r.graph(r.aten.mul.Tensor(x, tangent)), [tangent], [tangent])
    assert places == (None,) and graph.nodes == () and graph.outputs == ()
