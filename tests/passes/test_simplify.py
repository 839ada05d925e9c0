"""Algebraic simplification: each rule does what it says, exactly, and not where it must not."""

from __future__ import annotations

import math

import pytest
import torch

from dsjit.ir.graph import Write
from dsjit.ir.verify_graph import verify_graph
from dsjit.passes import simplify as simplify_module
from dsjit.passes.dce import eliminate_dead_code
from dsjit.passes.reference import run_reference, same_bits
from dsjit.passes.rules import RULES
from dsjit.passes.simplify import simplify
from tests.graphs import GraphRecorder, assert_rewrites, graph_from_text, printed

INPUTS = {
    "x": torch.tensor([[0.0, -0.0, math.nan], [math.inf, -math.inf, 1e-40]]),
    "i": torch.tensor([[0, 1, -1], [2**63 - 1, -(2**63), 7]]),
    "c": torch.tensor([[True, False, True], [False, False, True]]),
    "h": torch.tensor([[0.0, -0.0, math.nan], [math.inf, 65504.0, 6e-8]], dtype=torch.float16),
}


def as_graph(expression: str):
    """`expression` over x, i, c and h, with one op around it so that its result is not itself returned."""
    head = "def graph(x: f32[2, 3], i: i64[2, 3], c: bool[2, 3], h: f16[2, 3]):"
    return graph_from_text(f"{head}\n    return aten.stack.default([{expression}])\n")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_rewrites_before_to_after_bit_for_bit(rule):
    before, after = as_graph(rule.before), as_graph(rule.after)
    rewritten = eliminate_dead_code(simplify(before, [rule]))
    verify_graph(rewritten, run_ops=True)
    assert printed(rewritten) == printed(after)
    inputs = list(INPUTS.values())
    for wanted, got in zip(run_reference(before, inputs), run_reference(rewritten, inputs), strict=True):
        assert same_bits(one_nan(wanted), one_nan(got))


def one_nan(tensor):
    """Every NaN with the same bits: torch's own casts give NaNs of several payloads."""
    return tensor.nan_to_num(nan=0.5, posinf=math.inf, neginf=-math.inf) if tensor.is_floating_point() else tensor


def test_example_of_the_docstring():
    assert_rewrites(simplify, simplify_module.__doc__)


@pytest.mark.parametrize(
    "expression",
    [
        "aten.add.Tensor(x, 0)",
        "aten.add.Tensor(x, 0.0)",
        "aten.sub.Tensor(x, -0.0)",
        "aten.mul.Tensor(x, 0)",
        "aten.mul.Tensor(i, 1.0)",
        "aten.div.Tensor(i, 1)",
        "aten.add.Tensor(c, 0)",
        "aten.logical_not.default(aten.logical_not.default(x))",
        "aten.where.self(c, x, h)",
        "aten._to_copy.default(aten._to_copy.default(x, dtype=torch.float16), dtype=torch.float32)",
        "aten._to_copy.default(aten._to_copy.default(x, dtype=torch.float64), dtype=torch.int64)",
        "aten.clone.default(aten.t.default(x), memory_format=torch.contiguous_format)",
        "aten.view.default(aten.clone.default(aten.t.default(x), memory_format=torch.contiguous_format), [6])",
        "aten.cat.default([x, x])",
    ],
)
def test_leaves_what_is_not_exact(expression):
    graph = as_graph(expression)
    assert simplify(graph) is graph


def test_adding_minus_zero_is_exact():
    graph = as_graph("aten.add.Tensor(x, -0.0)")
    assert [str(node.op) for node in simplify(graph).nodes] == ["aten.stack.default"]


def test_a_returned_copy_of_an_input_stays_a_copy():
    r = GraphRecorder()
    graph = r.graph(r.aten.clone.default(r.input([4])))
    assert simplify(graph) is graph


def test_a_returned_view_of_an_input_stays_a_tensor_of_its_own():
    r = GraphRecorder()
    graph = r.graph(r.aten.view.default(r.input([4]), [4]))
    assert simplify(graph) is graph


def test_a_returned_copy_of_a_fresh_value_is_the_value():
    r = GraphRecorder()
    fresh = r.aten.exp.default(r.input([4]))
    assert simplify(r.graph(r.aten.clone.default(fresh))).outputs == (fresh,)


def test_a_concatenation_with_one_operand_that_has_elements_is_a_copy():
    r = GraphRecorder()
    x = r.input([2, 3])
    joined = r.aten.cat.default([r.aten.slice.Tensor(x, 0, 0, 0), r.aten.t.default(r.input([3, 2]))])
    graph = eliminate_dead_code(simplify(r.graph(joined)))
    assert [str(node.op) for node in graph.nodes] == ["aten.t.default", "aten.clone.default"]
    verify_graph(graph, run_ops=True)


def test_a_value_and_its_copy_stay_two_tensors_when_both_are_returned():
    r = GraphRecorder()
    fresh = r.aten.exp.default(r.input([4]))
    graph = r.graph(fresh, r.aten.clone.default(fresh))
    assert simplify(graph) is graph


def test_a_returned_copy_of_part_of_a_value_does_not_keep_the_whole_alive():
    r = GraphRecorder()
    part = r.aten.slice.Tensor(r.aten.exp.default(r.input([4, 2])), 0, 0, 2)
    graph = r.graph(r.aten.clone.default(part))
    assert simplify(graph) is graph


def test_a_copy_that_changes_the_strides_stays():
    r = GraphRecorder()
    transposed = r.aten.t.default(r.input([2, 3]))
    copy = r.aten.clone.default(transposed, memory_format=torch.contiguous_format)
    graph = r.graph(r.aten.neg.default(copy))
    assert simplify(graph) is graph


def test_a_written_value_does_not_become_an_input_that_is_written_to():
    r = GraphRecorder()
    x, y = r.input([4]), r.input([4])
    swapped = r.aten.clone.default(x)
    graph = r.graph(writes=(Write(x, y), Write(y, swapped)))
    assert simplify(graph) is graph
