"""All passes together: on programs, and on random Graphs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjit.errors import VerificationError
from dsjit.ir.graph import Graph, Node, Value, Write
from dsjit.passes.pipeline import PASSES, Pass, run_passes
from dsjit.passes.reference import run_reference
from tests.graphs import GraphRecorder, trace

aten = torch.ops.aten


def attention_block(x):
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    scores = (x @ x.mT / 8**0.5).masked_fill(~mask, float("-inf"))
    y = torch.softmax(scores, -1) @ x
    return torch.nn.functional.layer_norm(x + y, (8,)).to(torch.float32)


def statistics(x):
    return x.mean(), x.var(dim=1), x.std(), torch.logsumexp(x, 0), x.abs().max()


def shuffles(x):
    return x.transpose(0, 1).transpose(0, 1).reshape(-1).view(3, -1).expand(2, 3, 32).contiguous(), x.clone(), x[:]


@pytest.mark.parametrize("function", [attention_block, statistics, shuffles])
def test_programs_keep_their_results(function):
    x = torch.randn(2, 6, 8)
    graph = trace(function, x)
    result = run_passes(graph, check=True)
    torch.testing.assert_close(run_reference(result, [x]), run_reference(graph, [x]))


def test_stages_are_reported_in_order():
    stages: list[str] = []
    graph = trace(attention_block, torch.randn(2, 6, 8))
    result = run_passes(graph, on_stage=lambda name, stage: stages.append(name))
    assert stages == [step.name for step in PASSES]
    assert isinstance(result, Graph)


def test_checking_names_the_pass_that_broke_a_graph():
    def drop_everything(graph: Graph) -> Graph:
        return Graph(graph.inputs, (), graph.outputs)

    graph = trace(torch.exp, torch.randn(3))
    with pytest.raises(VerificationError) as caught:
        run_passes(graph, check=True, passes=(Pass("drop_everything", drop_everything),))
    assert "after pass drop_everything" in caught.value.__notes__


def storages(tensors):
    """Which tensors share memory: for each, the position of the first one that does."""
    pointers = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    return [pointers.index(pointer) for pointer in pointers]


UNARY = (aten.neg, aten.relu, aten.abs, aten.clone, aten.detach, aten.t)
NUMBERS = (0, 1, -0.0, 0.0, 1.0, 2.5)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Programs over square matrices of whole numbers, full of identities, copies, views and equal subexpressions."""
    r = GraphRecorder()
    inputs = [r.input([4, 4]), r.input([4, 4])]
    values: list[Value] = [*inputs, r.constant(torch.arange(16.0).view(4, 4) - 8)]
    for _ in range(draw(st.integers(1, 12))):
        x, y = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        kind = draw(st.integers(0, 7))
        if kind <= 1:
            values.append(r.call(draw(st.sampled_from(UNARY)).default, x))
        elif kind == 2:
            values.append(r.call(draw(st.sampled_from((aten.add, aten.sub, aten.mul))).Tensor, x, y))
        elif kind == 3:
            op = draw(st.sampled_from((aten.add, aten.sub, aten.mul, aten.div))).Tensor
            values.append(r.call(op, x, 1 if op is aten.div.Tensor else draw(st.sampled_from(NUMBERS))))
        elif kind == 4:
            values.append(r.aten.where.self(r.aten.gt.Scalar(x, 0), x, y))
        elif kind == 5:
            dense = r.aten.clone.default(x, memory_format=torch.contiguous_format)
            values.append(r.aten.view.default(r.aten.view.default(dense, [2, 8]), [4, 4]))
        elif kind == 6:
            values.append(r.aten.mm.default(x, y))
        else:
            rows = r.aten.slice.Tensor(x, 0, draw(st.integers(0, 2)), 4)
            values.append(r.aten.cat.default([r.aten.slice.Tensor(y, 0, 0, 4 - rows.type.shape[0]), rows]))
    outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=4))
    writes = (Write(inputs[0], draw(st.sampled_from(values))),) if draw(st.booleans()) else ()
    return r.graph(*outputs, writes=writes)


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_random_graphs_keep_results_writes_and_aliasing(graph):
    inputs = [torch.randint(-3, 4, (4, 4)).float() for _ in range(2)]
    copies = [tensor.clone() for tensor in inputs]
    result = run_passes(graph, check=True)
    wanted, got = run_reference(graph, inputs), run_reference(result, copies)
    for a, b in [*zip(wanted, got, strict=True), *zip(inputs, copies, strict=True)]:
        assert torch.equal(torch.nan_to_num(a, 77.0), torch.nan_to_num(b, 77.0))
        assert torch.equal(a.signbit() & (a == 0), b.signbit() & (b == 0))
        assert a.stride() == b.stride()
    constants = [tensor for held in (graph, result) for tensor in held.constants.values()]
    assert storages([*inputs, *wanted]) == storages([*copies, *got])
    if not any(value in graph.constants for value in graph.outputs):
        held = {tensor.untyped_storage().data_ptr() for tensor in constants}
        eager_aliases = {tensor.untyped_storage().data_ptr() for tensor in wanted} & held
        assert {tensor.untyped_storage().data_ptr() for tensor in got} & held == eager_aliases


def chain(length: int) -> Graph:
    """`length` nodes in a row, each different."""
    x = Value(0, GraphRecorder().input([4]).type)
    values = [x]
    nodes = []
    for n in range(length):
        values.append(Value(n + 1, x.type))
        nodes.append(Node(aten.add.Tensor, (values[-2], float(n)), {}, (values[-1],)))
    return Graph((x,), tuple(nodes), (values[-1],))


def test_long_graphs_do_not_exhaust_the_stack():
    assert len(run_passes(chain(20000)).nodes) == 20000
