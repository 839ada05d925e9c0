"""Graphs have a template when they differ in sizes, and in nothing else."""

from __future__ import annotations

import pytest
import torch

from dsjit.ir.graph import Graph, Node, TensorType, Value
from dsjit.ir.graph_template import make_graph_template
from dsjit.ir.polynomial import PolynomialFit
from dsjit.ir.structure_graph import graph_structure
from dsjit.ir.template import Mismatch, TemplateMaker

aten = torch.ops.aten

POINTS = ((2,), (3,), (4,), (5,), (7,))


def vector(number: int, size: int) -> Value:
    return Value(number, TensorType((size,), torch.float32, (1,), torch.device("cpu")))


def negated(size: int, count: int, which: int) -> Graph:
    """`count` vectors, of which one is negated."""
    inputs = tuple([vector(number, size) for number in range(count)])
    result = vector(count, size)
    return Graph(inputs, (Node(aten.neg.default, (inputs[which],), {}, (result,)),), (result,))


def template_of(*graphs: Graph):
    return make_graph_template(graphs, TemplateMaker(PolynomialFit(POINTS)))


def test_sizes_are_open():
    template = template_of(*[negated(size, 3, 1) for (size,) in POINTS])
    (node,) = template.at((100,)).nodes
    assert node.output.type.shape == (100,) and node.args[0].id == 1


def test_the_number_of_an_operand_is_no_size():
    with pytest.raises(Mismatch):
        template_of(*[negated(size, 9, size) for (size,) in POINTS])


TWO_SIZES = ((26, 27), (17, 18), (2, 2), (7, 6), (10, 9))


def shortened(rule):
    """One vector, of a length that depends on two others'."""
    inputs = [(vector(0, a), vector(1, b), vector(2, rule(a, b))) for a, b in TWO_SIZES]
    graphs = [Graph(given, (), given) for given in inputs]
    return make_graph_template(graphs, TemplateMaker(PolynomialFit(TWO_SIZES)))


def test_templates_that_differ_in_a_rule_have_other_canonical_graphs():
    rules = [lambda a, b: a, lambda a, b: b - 1, lambda a, b: b, lambda a, b: a + 1, lambda a, b: 2 * a - b]
    keys = [tuple(map(graph_structure, shortened(rule).canonical())) for rule in rules]
    assert len(set(keys)) == len(rules)
    assert tuple(map(graph_structure, shortened(rules[1]).canonical())) == keys[1]
