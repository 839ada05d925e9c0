"""A joint Graph is cut into a forward and a backward, where the fewest bytes cross."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dsjit.ir.graph import Write
from dsjit.ir.joint_graph import JointGraph
from dsjit.ir.verify_graph import verify_graph
from dsjit.passes import partition as module
from dsjit.passes.partition import partition
from dsjit.passes.pipeline import JOINT_PASSES, run_passes
from dsjit.passes.reference import run_reference
from dsjit.passes.segments import forward_nodes
from dsjit.trace.capture import capture
from tests.graphs import GraphRecorder, example, graph_from_text, printed


def joint_of(graph, primals, results=1, keepable_primals=None, keepable_results=frozenset()):
    """Every output after the results is the gradient of a primal, in order."""
    gradients = tuple([n if n < len(graph.outputs) - results else None for n in range(primals)])
    shapes = tuple([None if n is None else graph.outputs[results + n].type.shape for n in gradients])
    keepable = frozenset(range(primals)) if keepable_primals is None else keepable_primals
    return JointGraph(graph, primals, results, (0,), gradients, shapes, keepable, keepable_results)


def ops(graph):
    return [str(node.op).removeprefix("aten.") for node in graph.nodes]


def test_example_of_the_docstring():
    before, after = example(module.__doc__)
    halves = partition(joint_of(graph_from_text(before), primals=2))
    assert f"{printed(halves.forward)}\n{printed(halves.backward)}" == after.strip()


def test_what_cannot_be_computed_again_for_free_is_kept():
    r = GraphRecorder()
    x, tangent = r.input([64, 8]), r.input([64])
    total = r.aten.sum.dim_IntList(r.aten.exp.default(x), [1])
    noise = r.aten.bernoulli.default(total)
    result = r.aten.mul.Tensor(total, noise)
    gradient = r.aten.mul.Tensor(r.aten.mul.Tensor(tangent, noise), total)
    halves = partition(joint_of(r.graph(result, gradient), primals=1))
    assert halves.kept == (total, noise)
    assert ops(halves.backward) == ["mul.Tensor", "mul.Tensor"]


def test_of_several_ways_with_equal_bytes_the_least_is_computed_again():
    r = GraphRecorder()
    x, w, tangent = r.input([8, 8]), r.input([8, 8]), r.input([8, 8])
    squashed = r.aten.tanh.default(r.aten.exp.default(r.aten.mm.default(x, w)))
    gradient = r.aten.mul.Tensor(tangent, squashed)
    halves = partition(joint_of(r.graph(r.aten.sin.default(squashed), gradient), primals=2))
    assert halves.kept == (squashed,)


def test_a_product_of_few_terms_is_computed_again_and_one_of_many_is_kept():
    def kept(terms):
        r = GraphRecorder()
        left, right, tangent = r.input([512, terms]), r.input([terms, 512]), r.input([512, 512])
        exponential = r.aten.exp.default(r.aten.mm.default(left, right))
        total = r.aten.sum.dim_IntList(exponential, [1], True)
        gradient = r.aten.mul.Tensor(tangent, r.aten.div.Tensor(exponential, total))
        return exponential, partition(joint_of(r.graph(r.aten.sin.default(exponential), gradient), primals=2)).kept

    exponential, few = kept(16)
    assert exponential not in few and [value.type.shape for value in few] == [(512, 16), (16, 512), (512, 1)]
    _, many = kept(512)
    assert [value.type.shape for value in many] == [(512, 512)]


def test_what_is_computed_again_comes_just_before_its_first_reader():
    r = GraphRecorder()
    x, tangent = r.input([8]), r.input([8])
    first, second = r.aten.sin.default(x), r.aten.cos.default(x)
    gradient = r.aten.mul.Tensor(r.aten.mul.Tensor(tangent, second), first)
    halves = partition(joint_of(r.graph(r.aten.add.Tensor(first, second), gradient), primals=1))
    assert ops(halves.backward) == ["cos.default", "mul.Tensor", "sin.default", "mul.Tensor"]


def test_a_wide_value_is_computed_again_from_a_narrow_one():
    r = GraphRecorder()
    x, tangent = r.input([8, 8]), r.input([8, 8])
    narrow = r.aten.sum.dim_IntList(x, [1], True)
    wide = r.aten.exp.default(r.aten.expand.default(narrow, [8, 8]))
    halves = partition(joint_of(r.graph(r.aten.mul.Tensor(x, wide), r.aten.mul.Tensor(tangent, wide)), primals=1))
    assert halves.kept == (narrow,)


def test_what_the_caller_may_write_to_is_kept_as_a_copy():
    r = GraphRecorder()
    x, tangent = r.input([8]), r.input([8])
    graph = r.graph(r.aten.sin.default(x), r.aten.mul.Tensor(tangent, r.aten.cos.default(x)))
    kept = partition(joint_of(graph, primals=1))
    assert kept.kept == (x,) and len(kept.forward.outputs) == 1
    copied = partition(joint_of(graph, primals=1, keepable_primals=frozenset()))
    (cosine,) = copied.kept
    assert ops(copied.forward) == ["sin.default", "cos.default"] and copied.forward.outputs[1] is cosine


def test_an_argument_that_the_forward_writes_is_kept_as_it_was():
    r = GraphRecorder()
    x, tangent = r.input([8]), r.input([8])
    doubled = r.aten.mul.Tensor(x, 2)
    graph = r.graph(
        r.aten.sin.default(x), r.aten.mul.Tensor(tangent, r.aten.sum.default(x)), writes=(Write(x, doubled),)
    )
    halves = partition(joint_of(graph, primals=1))
    x_now = torch.randn(8)
    before = x_now.clone()
    kept = run_reference(halves.forward, [x_now])[1:]
    (gradient,) = run_reference(halves.backward, [*kept, torch.ones(8)])
    assert torch.equal(x_now, before * 2)
    torch.testing.assert_close(gradient, before.sum().expand(8))


def test_a_gradient_that_is_something_kept_is_a_tensor_of_its_own():
    r = GraphRecorder()
    x, w, _ = r.input([4]), r.input([4]), r.input([4])
    halves = partition(joint_of(r.graph(r.aten.mul.Tensor(x, w), w), primals=2))
    assert ops(halves.backward) == ["clone.default"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x)))).softmax(-1)


@pytest.mark.parametrize("training", [False, True])
def test_both_halves_together_are_the_whole(training):
    torch.manual_seed(0)
    model = nn.Sequential(Block(), nn.BatchNorm1d(8), Block()).double().train(training)  # sums cancel in float32
    found = capture(copy.deepcopy(model), (torch.randn(6, 8, dtype=torch.float64),), {}, "f")
    joint = found.joint
    inputs = [torch.randn(value.type.shape, dtype=value.type.dtype) if value.type.dtype.is_floating_point
              else torch.tensor(0) for value in joint.graph.inputs]  # fmt: skip
    inputs = [tensor.abs() + 0.1 for tensor in inputs]
    whole = run_reference(joint.graph, [tensor.clone() for tensor in inputs])
    simple = JointGraph(
        run_passes(joint.graph, passes=JOINT_PASSES), joint.primals, joint.results, joint.differentiated,
        joint.gradients, joint.shapes, joint.keepable_primals, joint.keepable_results,
    )  # fmt: skip
    halves = partition(simple)
    verify_graph(halves.forward)
    verify_graph(halves.backward)
    given = [tensor.clone() for tensor in inputs[: joint.primals]]
    results = run_reference(halves.forward, given)
    known = dict(zip(halves.forward.inputs, given, strict=True))
    known.update(zip(halves.forward.outputs, results, strict=True))
    rest = iter(results[joint.results :])
    kept = [known[value] if value in halves.shared else next(rest) for value in halves.kept]
    gradients = run_reference(halves.backward, [*kept, *inputs[joint.primals :]])
    for mine, theirs in zip((*results[: joint.results], *gradients), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_what_the_backward_begins_with_is_no_reason_to_keep_what_is_computed_again():
    r = GraphRecorder()
    x, w, tangent = r.input([8, 8]), r.input([8, 8]), r.input([8, 8])
    first = r.aten.mm.default(x, w)
    second = r.aten.mm.default(first, w)
    late = r.aten.mul.Tensor(tangent, r.aten.exp.default(second))
    wide = r.aten._to_copy.default(first, dtype=torch.float64)  # depends on no gradient, and stands behind one
    joint = joint_of(r.graph(r.aten.sin.default(second), r.aten.mul.Tensor(late, wide)), primals=2)
    assert first in partition(joint).kept
    assert not {first, second, wide} & set(partition(joint, [joint.graph.nodes[:2]]).kept)


def residual(blocks, size=256):
    """Sums of products, each of which the backward wants, and so each sum."""
    r = GraphRecorder()
    x, w, tangent = r.input([size, size]), r.input([size, size]), r.input([size, size])
    sums, products = [x], []
    for _ in range(blocks):
        products.append(r.aten.mm.default(sums[-1], w))
        sums.append(r.aten.add.Tensor(products[-1], sums[-1]))
    gradient = tangent
    for total, product in zip(sums[:0:-1], reversed(products), strict=True):
        gradient = r.aten.mul.Tensor(r.aten.mul.Tensor(gradient, total), product)
    result = r.aten.mm.default(sums[-1], w)
    return joint_of(r.graph(result, gradient), primals=2), sums, products


def test_chains_of_what_is_computed_again_are_short():
    joint, sums, products = residual(60)
    kept = set(partition(joint).kept)
    assert kept >= set(products)
    between = [number for number, total in enumerate(sums) if total in kept]
    assert 3 <= len(between) <= module.CHAIN_PARTS
    assert max(later - earlier for earlier, later in pairwise(between)) <= 20


def test_short_chains_and_those_of_small_values_are_computed_again_as_a_whole():
    for joint, sums, _ in (residual(3), residual(60, size=128)):
        assert not set(sums[1:]) & set(partition(joint).kept)


def test_chains_in_parts_that_are_to_be_computed_again_stay_whole():
    joint, sums, products = residual(60)
    halves = partition(joint, [forward_nodes(joint)])
    assert not {*sums[1:], *products} & set(halves.kept)
