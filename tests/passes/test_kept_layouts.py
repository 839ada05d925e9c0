"""Forward and backward hand images over in the order that both keep them in."""

from __future__ import annotations

import pytest
import torch

from dsjit.ir.verify_graph import verify_graph
from dsjit.passes import kept_layouts as module
from dsjit.passes.channels_last import channels_last
from dsjit.passes.kept_layouts import keep_channels_last
from dsjit.passes.partition import partition
from dsjit.passes.reference import run_reference
from tests.graphs import GraphRecorder, example, graph_from_text, printed
from tests.passes.test_partition import joint_of

aten = torch.ops.aten


def convolutions(count, keepable_results=frozenset()):
    """`count` convolutions of 6 to 6 channels in a row, the result of the first returned, too; gradients of weights."""
    r = GraphRecorder()
    settings = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    images, weights = [r.input([2, 6, 5, 4])], [r.input([6, 6, 3, 3]) for _ in range(count)]
    tangent = r.input([2, 6, 5, 4])
    for weight in weights:
        images.append(r.call(aten.convolution.default, images[-1], weight, None, *settings))
    gradients = []
    for image, weight in zip(reversed(images[:-1]), reversed(weights), strict=True):
        tangent, of_weight, _ = r.call(
            aten.convolution_backward.default, tangent, image, weight, [6], *settings, [True, True, True]
        )
        gradients.insert(0, of_weight)
    graph = r.graph(images[-1], images[1], tangent, *gradients)
    return joint_of(graph, primals=1 + count, results=2, keepable_results=keepable_results)


def test_example_of_the_docstring():
    before, after = example(module.__doc__)
    halves = keep_channels_last(partition(joint_of(graph_from_text(before), primals=2)))
    assert f"{printed(halves.forward)}\n{printed(halves.backward)}" == after.strip()


def test_no_copy_is_left_between_the_halves():
    halves = keep_channels_last(partition(convolutions(3)))
    forward, backward = channels_last(halves.forward), channels_last(halves.backward)
    verify_graph(forward, run_ops=True)
    verify_graph(backward, run_ops=True)
    images = [value for value in halves.kept if value.type.strides == (120, 1, 24, 6)]
    assert len(images) == 2
    for image in images:
        read = [node for node in backward.nodes if image in node.args]
        assert [node.op for node in read] == [aten.convolution_backward.default]
    copies = [node for node in forward.nodes if node.op is aten.clone.default and node.output in forward.outputs]
    assert len(copies) == 3  # of what the caller gets: two results, and the one that is kept as well


def test_the_gradients_stay():
    joint = convolutions(3)
    halves = keep_channels_last(partition(joint))
    generator = torch.Generator().manual_seed(0)
    *primals, tangent = (torch.randn(value.type.shape, generator=generator) for value in joint.graph.inputs)
    expected = run_reference(joint.graph, [*primals, tangent])
    outputs = run_reference(channels_last(halves.forward), primals)
    places = dict(zip(halves.forward.inputs, primals, strict=True))
    rest = iter(outputs[2:])
    kept = [places[value] if value in halves.shared else next(rest) for value in halves.kept]
    assert [tensor.stride() for tensor in kept] == [value.type.strides for value in halves.kept]
    gradients = run_reference(channels_last(halves.backward), [*kept, tangent])
    assert [t.stride() for t in gradients] == [t.stride() for t in expected[2:]]
    for actual, wanted in zip((*outputs[:2], *gradients), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_what_the_caller_holds_keeps_its_order(count):
    joint = convolutions(count, keepable_results=frozenset({0, 1}))
    halves = partition(joint)
    assert keep_channels_last(halves) is halves
