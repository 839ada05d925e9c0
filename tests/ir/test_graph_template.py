"""Graphs have a template when they differ in sizes, and in nothing else."""

from __future__ import annotations

import pytest
import torch

from dsjit.ir.graph import Graph, Node, TensorType, Value
from dsjit.ir.graph_template import make_graph_template
from dsjit.ir.polynomial import PolynomialFit
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
