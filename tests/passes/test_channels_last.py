"""Images in channels-last order between convolutions."""

from __future__ import annotations

import pytest
import torch

from dsjit.ir.verify_graph import verify_graph
from dsjit.ops.direct_convolution import direct_convolution
from dsjit.passes.channels_last import LONGEST_CHAIN, channels_last
from dsjit.passes.reference import run_reference
from tests.graphs import GraphRecorder, trace

aten = torch.ops.aten

PIXEL, WINDOW = (1, 1), (3, 3)


def arguments(graph):
    """Standard normal numbers for each input of `graph`."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(value.type.shape, generator=generator) for value in graph.inputs]
    return [t.as_strided(t.shape, value.type.strides) for t, value in zip(tensors, graph.inputs, strict=True)]


def two_convolutions(channels, window, stride=1, groups=1, bias=False, dtype=torch.float32, layout=None):
    """A convolution of 8 to `channels` channels, and the one in question, of `channels` to 6."""
    layout = layout or torch.contiguous_format
    r = GraphRecorder()

    def tensor(*shape):
        return r.input(shape, dtype, torch.empty(shape, device="meta").contiguous(memory_format=layout).stride())

    def convolution(x, weight, bias, stride, padding, groups):
        return r.call(aten.convolution.default, x, weight, bias, stride, padding, [1, 1], False, [0, 0], groups)

    x, first, second = tensor(2, 8, 5, 7), tensor(channels, 8, 1, 1), tensor(6, channels // groups, *window)
    added = r.input([6], dtype) if bias else None
    hidden = convolution(x, first, None, [1, 1], [0, 0], 1)
    padding = [window[0] // 2, window[1] // 2]
    return r.graph(convolution(hidden, second, added, [stride, stride], padding, groups))


def nodes_of(graph, *ops):
    return [node for node in graph.nodes if node.op in ops]


def chains(graph):
    """How many products each convolution and each matrix product adds up in one go."""
    lengths = []
    for node in nodes_of(graph, aten.convolution.default):
        lengths.append(node.args[1].type.numel // node.args[1].type.shape[0])
    for node in nodes_of(graph, direct_convolution):
        _, _, height, width, chunk, _ = node.args[1].type.shape
        lengths.append(height * width * chunk)
    for node in nodes_of(graph, aten.mm.default, aten.bmm.default):
        lengths.append(node.args[0].type.shape[-1])
    return lengths


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("channels", "window", "stride", "groups"),
    [(8, WINDOW, 1, 1), (64, WINDOW, 1, 1), (64, WINDOW, 2, 1), (64, WINDOW, 1, 2), (288, PIXEL, 1, 1),
     (288, PIXEL, 2, 1), (37, WINDOW, 1, 1), (6, (3, 1), 1, 3)],
)  # fmt: skip
def test_the_result_and_its_strides_stay(channels, window, stride, groups, bias, layout):
    graph = two_convolutions(channels, window, stride, groups, bias, layout=layout)
    moved = channels_last(graph)
    verify_graph(moved, run_ops=True)
    assert [value.type for value in moved.outputs] == [value.type for value in graph.outputs]
    inputs = arguments(graph)
    (actual,), (expected,) = run_reference(moved, inputs), run_reference(graph, inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "window", "stride", "longest"),
    [
        (64, WINDOW, 1, 144),
        (96, WINDOW, 1, 144),
        (37, WINDOW, 1, 144),
        (15, WINDOW, 1, 135),
        (300, (1, 3), 1, 144),
        (512, PIXEL, 1, 128),
        (512, PIXEL, 2, 128),
        (144, PIXEL, 1, 144),
    ],
)
def test_sums_over_many_channels_are_cut(channels, window, stride, longest):
    assert max(chains(channels_last(two_convolutions(channels, window, stride)))) == longest <= LONGEST_CHAIN


def test_every_part_of_a_sum_keeps_the_lanes_of_a_register_full():
    graph = channels_last(two_convolutions(64, (5, 5)))
    assert max(chains(graph)) == 16 * 25


@pytest.mark.parametrize(
    ("window", "options"),
    [(WINDOW, {"dtype": torch.bfloat16}), (WINDOW, {"groups": 2}), (WINDOW, {"groups": 64}), ((33, 33), {})],
)
def test_other_convolutions_stay(window, options):
    """Where each part would be rounded, where groups cut the sums, and where a window is too large for a stack."""
    graph = channels_last(two_convolutions(64, window, **options))
    (last,) = [node for node in nodes_of(graph, aten.convolution.default) if node.args[1].type.shape[0] == 6]
    assert last.args[8] == options.get("groups", 1)
    assert not nodes_of(graph, aten.sum.dim_IntList, direct_convolution)


def test_weights_are_padded_to_whole_chunks_and_registers():
    (node,) = nodes_of(channels_last(two_convolutions(70, WINDOW)), direct_convolution)
    assert node.args[1].type.shape == (1, 5, 3, 3, 16, 16)
    assert node.args[2] == 6


@pytest.mark.parametrize(("channels", "window"), [(512, WINDOW), (1024, PIXEL)])
def test_no_further_from_float64_than_convolutions_on_row_major_images(channels, window):
    graph = two_convolutions(channels, window)
    inputs = arguments(graph)
    (exact,) = run_reference(graph, [tensor.double() for tensor in inputs])
    (eager,), (moved,) = run_reference(graph, inputs), run_reference(channels_last(graph), inputs)
    assert (moved - exact).square().mean() <= (eager - exact).square().mean() * 1.05**2


def two_gradients(channels, window, stride=1, groups=1, dilation=1, wanted=(True, True, True), out=6):
    """The backward of a convolution of `out` to 8 channels, and of the one in question before it, of `channels` to
    `out`."""
    r = GraphRecorder()
    padding = [dilation * (size // 2) for size in window]
    sizes = [(size - 1) // stride + 1 for size in (9, 7)]
    tangent, image, weight = (
        r.input((2, out, *sizes)),
        r.input((2, channels, 9, 7)),
        r.input((out, channels // groups, *window)),
    )
    last, first = r.input((2, 8, *sizes)), r.input((8, out, 1, 1))
    op = aten.convolution_backward.default
    before, *others = r.call(
        op, last, tangent, first, [8], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, True]
    )
    geometry = ([stride] * 2, padding, [dilation] * 2, False, [0, 0], groups)
    gradients = r.call(op, before, image, weight, [6], *geometry, list(wanted))
    return r.graph(*others, *[value for value, ask in zip(gradients, wanted, strict=True) if ask])


@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, True, True)])
@pytest.mark.parametrize(
    ("channels", "window", "options"),
    [(8, WINDOW, {}), (64, WINDOW, {}), (40, (1, 3), {}), (64, WINDOW, {"stride": 2}), (64, WINDOW, {"groups": 2}),
     (8, WINDOW, {"dilation": 2}), (288, PIXEL, {}), (288, PIXEL, {"stride": 2}), (512, PIXEL, {})],
)  # fmt: skip
def test_gradients_and_their_strides_stay(channels, window, options, wanted):
    graph = two_gradients(channels, window, **options, wanted=wanted)
    moved = channels_last(graph)
    assert [value.type for value in moved.outputs] == [value.type for value in graph.outputs]
    inputs = arguments(graph)
    for actual, expected in zip(run_reference(moved, inputs), run_reference(graph, inputs), strict=True):
        assert actual.stride() == expected.stride()
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("channels", "window"), [(512, WINDOW), (64, WINDOW), (512, PIXEL)])
def test_gradients_of_images_are_no_further_from_float64_than_on_row_major_images(channels, window):
    # Sums of few terms are rounded as the layout has it, on one processor this way and on another that way.
    graph = two_gradients(channels, window, wanted=(True, False, False), out=64)
    inputs = arguments(graph)
    *_, exact = run_reference(graph, [tensor.double() for tensor in inputs])
    (*_, eager), (*_, moved) = run_reference(graph, inputs), run_reference(channels_last(graph), inputs)
    assert (moved - exact).square().mean() <= (eager - exact).square().mean() * 1.05**2


@pytest.mark.parametrize(("channels", "product"), [(512, True), (8, False)])
def test_the_gradient_of_a_large_weight_of_one_pixel_is_a_sum_of_products(channels, product):
    graph = two_gradients(channels, PIXEL, wanted=(False, True, False), out=64)
    moved = channels_last(graph)
    verify_graph(moved, run_ops=True)
    assert len(nodes_of(moved, aten.addbmm.default)) == product
    inputs = arguments(graph)
    *_, exact = run_reference(graph, [tensor.double() for tensor in inputs])
    (*_, eager), (*_, found) = run_reference(graph, inputs), run_reference(moved, inputs)
    assert (found - exact).square().mean() <= (eager - exact).square().mean() * 1.05**2


@pytest.mark.parametrize("convolutions", [0, 1])
def test_with_fewer_than_two_convolutions_nothing_is_won(convolutions):
    weight = torch.zeros(3, 3, 3, 3)

    def program(x):
        for _ in range(convolutions):
            x = torch.nn.functional.conv2d(x, weight, padding=1)
        return torch.relu(x)

    graph = trace(program, torch.zeros(2, 3, 4, 5))
    assert channels_last(graph) is graph
