"""From the units of a fusion plan to a Program: what is native, what is planned, and that it computes the Graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from dsjit.codegen.assemble import assemble
from dsjit.codegen.llvm.engine import KernelCache
from dsjit.codegen.placement import Step
from dsjit.codegen.program import Program
from dsjit.codegen.steps import choose_steps
from dsjit.fusion.group import Group
from dsjit.fusion.limits import Limits
from dsjit.fusion.lower import FusedKernel, lower_group
from dsjit.fusion.planner import plan_fusion
from dsjit.ir.graph import Graph, Node, Write
from dsjit.passes.pipeline import run_passes
from dsjit.passes.reference import run_reference
from tests.graphs import GraphRecorder, trace

aten = torch.ops.aten
f32, bf16, i64 = torch.float32, torch.bfloat16, torch.int64


@dataclass
class Assembled:
    graph: Graph
    steps: list[Step]
    native: list[str]
    program: Program

    def step_of(self, op) -> Step:
        (step,) = [s for s in self.steps if not isinstance(s.work, FusedKernel) and s.work.node.op is op]
        return step


def used_by_a_group_around_products(
    x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The last product of `exp(y)` and the first use of it: a kernel of both needs what is computed in between, from
    `exp(x)`, which therefore cannot be one with the kernel that uses both."""
    first, second = x.exp(), y.exp()
    both = first + second
    return both, (b @ (first.view(-1, x.shape[-1]) @ a)) * second


def assembled(graph: Graph) -> Assembled:
    graph = run_passes(graph, check=True)
    plan = plan_fusion(graph, Limits(), torch.device("cpu"))
    units = [lower_group(u, plan.info, plan.views) if isinstance(u, Group) else u for u in plan.units]
    steps, matmuls = choose_steps(units, plan.views, torch.device("cpu"))
    fused = [unit for unit in units if isinstance(unit, FusedKernel)]
    kernels = dict(zip(fused, KernelCache().compile_kernels([unit.kernel for unit in fused]).kernels, strict=True))
    program = assemble(graph, steps, matmuls, plan.views, kernels)
    return Assembled(graph, steps, [str(node.op) for node in matmuls], program)


def assert_computes(graph: Graph, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The Program gives what the Graph means, with the strides that it states, and writes what it writes; twice."""
    program = assembled(graph).program
    for _ in range(2):
        mine, theirs = [x.clone() for x in inputs], [x.clone() for x in inputs]
        found, expected = program(mine), run_reference(graph, theirs)
        for a, value, b in zip(found, graph.outputs, expected, strict=True):
            torch.testing.assert_close(a, b)
            assert a.stride() == value.type.strides
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a, b)
    return found


X = torch.linspace(-1.0, 2.0, 12).view(3, 4)
SQUARE = torch.linspace(-1.0, 1.0, 16).view(4, 4)

PROGRAMS = {
    "a kernel": (lambda x: x.exp() + 1, (X,)),
    "a product": (lambda x, w: (x @ w).relu(), (X, SQUARE)),
    "a product of views": (lambda x, w: x[1:] @ w.t(), (X, SQUARE)),
    "into a planned buffer": (lambda x: torch.cumsum(x * 2, 0) + 1, (X,)),
    "into a result": (lambda x: torch.cumsum(x, 0), (X,)),
    "several results": (lambda x: torch.sort(x * 2, 1), (X,)),
    "one of several results": (lambda x: torch.sort(x, 1)[1] + 1, (X,)),
    "a list of results": (lambda x: torch.stack(torch.unbind(x.sort(0)[0])), (X,)),
    "a view of a library result": (lambda x: torch.sort(x, 1)[0].t() * 2, (X,)),
    "a view of a kernel's result, by a library": (lambda x: torch.cumsum((x + 1).t(), 0), (X,)),
    "a library call on an input": (lambda x: torch.cumsum(x.t(), 1), (X,)),
    "a group of nodes from far apart": (
        used_by_a_group_around_products,
        (torch.linspace(0.0, 1.0, 64).view(4, 4, 4), SQUARE, SQUARE, torch.ones(4, 16)),
    ),
    "no elements": (lambda x: (x[:0] + 1, torch.cumsum(x[:0], 0)), (X,)),
    "a dimension of 1": (lambda x: torch.cumsum(x[:, :1] * 2, 0), (X,)),
    "a scalar": (lambda x: (x.sum() * 2).reshape(()), (X,)),
    "bfloat16": (lambda x, w: (x.to(bf16) @ w.to(bf16)) + 1, (X, SQUARE)),
    "integers": (lambda x: torch.cumsum(x.to(i64), 1) * 3, (X,)),
    "a float that is no literal": (lambda x: torch.logit(x, 1e-300) + torch.cumsum(x, 0), (X,)),
    "concatenation of a library's and a kernel's": (lambda x: torch.cat([torch.cumsum(x, 0), x.exp()]), (X,)),
}


@pytest.mark.parametrize(("function", "inputs"), PROGRAMS.values(), ids=list(PROGRAMS))
def test_a_program_computes_its_graph(function, inputs):
    assert_computes(trace(function, *inputs), *inputs)


@pytest.mark.parametrize(
    ("function", "dtype", "native"),
    [
        (lambda x, w: x @ w, f32, ["aten.mm.default"]),
        (lambda x, w: x @ w, torch.float64, ["aten.mm.default"]),
        (lambda x, w: x @ w, bf16, []),
        (lambda x, w: torch.bmm(x[None], w[None]), f32, ["aten.bmm.default"]),
        (lambda x, w: torch.cumsum(x, 0) + torch.cumsum(w[:3], 0), f32, []),
    ],
    ids=["float32", "float64", "bfloat16", "batched", "no product"],
)
def test_products_of_float32_and_float64_are_native(function, dtype, native):
    assert assembled(trace(function, X.to(dtype), SQUARE.to(dtype))).native == native


@pytest.mark.parametrize(
    ("function", "op", "planned"),
    [
        (lambda x: torch.cumsum(x, 0), aten.cumsum.default, True),
        (lambda x: x.to(bf16) @ x.to(bf16).t(), aten.mm.default, True),
        (lambda x: torch.sort(x)[0], aten.sort.default, False),
        (lambda x: torch.nonzero(x), aten.nonzero.default, False),
        (lambda x: torch.cumsum(x[:0], 0), aten.cumsum.default, False),
        (lambda x: torch.rand_like(x), aten.rand_like.default, False),
    ],
    ids=["has out=", "product", "two results", "its shape depends on data", "no elements", "draws"],
)
def test_one_dense_result_of_known_shape_is_written_where_it_is_wanted(function, op, planned):
    found = assembled(trace(function, X))
    assert found.step_of(op).planned is planned
    assert ("out=" in found.program.source) is planned


def test_a_result_that_is_an_input_is_a_copy():
    r = GraphRecorder()
    x = r.input([3])
    given = torch.ones(3)
    assert_computes(r.graph(x), given)
    (found,) = assembled(r.graph(x)).program([given])
    assert found.data_ptr() != given.data_ptr()


def test_a_result_that_is_a_constant_is_a_copy_each_time():
    r = GraphRecorder()
    constant = torch.ones(3)
    graph = r.graph(r.constant(constant))
    program = assembled(graph).program
    first, second = program([])[0], program([])[0]
    assert len({first.data_ptr(), second.data_ptr(), constant.data_ptr()}) == 3


@pytest.mark.parametrize("function", [lambda x: x.exp(), lambda x: torch.cumsum(x, 0)], ids=["kernel", "library"])
def test_one_value_returned_twice_is_two_tensors(function):
    graph = trace(function, X)
    first, second = assert_computes(replace(graph, outputs=graph.outputs * 2), X)
    assert first.data_ptr() != second.data_ptr()


def test_results_of_earlier_calls_are_never_overwritten():
    program = assembled(trace(lambda x, w: torch.cumsum((x @ w).relu(), 0) * 2, X, SQUARE)).program
    (first,) = program([X, SQUARE])
    kept = first.clone()
    program([X + 1, SQUARE])
    assert torch.equal(first, kept)


class TestWrites:
    def test_come_last(self):
        r = GraphRecorder()
        x = r.input([3])
        doubled, read = r.aten.mul.Tensor(x, 2.0), r.aten.cumsum.default(x, 0)
        graph = r.graph(read, writes=(Write(x, doubled, r.source),))
        assert_computes(graph, torch.arange(3.0))

    def test_of_each_others_old_content_exchange_it(self):
        r = GraphRecorder()
        x, y = r.input([3]), r.input([3])
        graph = r.graph(writes=(Write(x, y, r.source), Write(y, x, r.source)))
        assert_computes(graph, torch.zeros(3), torch.ones(3))

    def test_of_a_result_leave_the_result_alone(self):
        r = GraphRecorder()
        x = r.input([3])
        total = r.aten.add.Tensor(x, 1.0)
        graph = r.graph(total, writes=(Write(x, total, r.source),))
        given = torch.zeros(3)
        (found,) = assembled(graph).program([given])
        assert torch.equal(found, given) and found.data_ptr() != given.data_ptr()


def test_arguments_that_an_op_changes_are_changed_in_a_copy():
    r = GraphRecorder()
    x = r.input([3])
    changed = r.value(x.type)
    r.nodes.append(Node(aten.relu_.default, (x,), {}, (changed,), r.source, mutates=(0,)))
    (found,) = assert_computes(r.graph(changed), torch.tensor([-1.0, 0.0, 2.0]))
    assert found.tolist() == [0.0, 0.0, 2.0]


def test_a_result_that_a_library_lays_out_otherwise_is_copied_to_the_strides_of_the_graph():
    graph = trace(lambda x: torch.sort(x, 1)[0], X)
    (node,) = graph.nodes
    turned = tuple(replace(v, type=replace(v.type, strides=(1, 3))) for v in node.outputs)
    graph = replace(graph, nodes=(replace(node, outputs=turned),), outputs=turned[:1])
    assert_computes(graph, X)
