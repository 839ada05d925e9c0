"""In the recorded backward, what is linear in gradients of zeros is not computed, and looks as if it were."""

from __future__ import annotations

import pytest
import torch

from dsjit.ir.graph import UNKNOWN_SOURCE, Node
from dsjit.trace.capture import capture
from dsjit.trace.training.zero_gradients import ADDITIVE, LINEAR, WORTH, ZeroGradients

aten = torch.ops.aten

GRADIENT = torch.zeros(64, 80)
WIDE = torch.randn(64, 80)
TRANSPOSED = torch.randn(80, 64).t()
IMAGES = torch.zeros(4, 8, 16, 16).to(memory_format=torch.channels_last)
ROWS = torch.arange(64)


def _convolution(
    image,
    weight,
    padding=None,
    stride=None,
    dilation=None,
    transposed=False,
    groups=1,
    wanted=(True, True, True),
    memory_format=torch.contiguous_format,
    dtype=torch.float32,
):
    spatial = len(image) - 2
    x = torch.randn(image, dtype=dtype).to(memory_format=memory_format)
    w = torch.randn(weight, dtype=dtype)
    geometry = (stride or [1] * spatial, padding or [1] * spatial, dilation or [1] * spatial)
    options = (*map(list, geometry), transposed, [0] * spatial, groups)
    out = aten.convolution.default(x, w, None, *options)
    return torch.zeros_like(out), x, w, [out.shape[1]], *options, list(wanted)


def _layer_norm(shape, normalized, wanted=(True, True, True)):
    x = torch.randn(shape)
    _, mean, rstd = aten.native_layer_norm.default(x, normalized, None, None, 1e-5)
    return (
        torch.zeros(shape),
        x,
        list(normalized),
        mean,
        rstd,
        torch.ones(normalized),
        torch.ones(normalized),
        list(wanted),
    )


def _batch_norm(shape, train=True, wanted=(True, True, True), memory_format=torch.contiguous_format):
    x = torch.randn(shape).to(memory_format=memory_format)
    channel = torch.ones(shape[1])
    saved = (channel, channel) if train else (torch.empty(0), torch.empty(0))
    return torch.zeros_like(x), x, channel, channel, channel, *saved, train, 1e-5, list(wanted)


CASES = [
    (aten.mm.default, (GRADIENT, torch.randn(80, 72))),
    (aten.mm.default, (GRADIENT, torch.randn(72, 80).t())),
    (aten.mm.default, (GRADIENT.t(), torch.randn(64, 72))),
    (aten.bmm.default, (torch.zeros(3, 64, 80), torch.randn(3, 80, 72))),
    (aten.bmm.default, (torch.zeros(3, 64, 80), torch.randn(3, 72, 80).mT)),
    (aten.mul.Tensor, (GRADIENT, WIDE)),
    (aten.mul.Tensor, (GRADIENT, TRANSPOSED)),
    (aten.mul.Tensor, (GRADIENT.bfloat16(), WIDE)),
    (aten.mul.Tensor, (GRADIENT, torch.tensor(0.5))),
    (aten.mul.Tensor, (GRADIENT, torch.tensor(0.5, dtype=torch.float64))),
    (aten.mul.Tensor, (GRADIENT, torch.randn(80))),
    (aten.mul.Tensor, (GRADIENT, WIDE > 0)),
    (aten.mul.Tensor, (torch.zeros(1, 80).expand(64, 80), WIDE)),
    (aten.mul.Tensor, (torch.zeros(64, 160)[:, ::2], torch.randn(64, 160)[:, ::2])),
    (aten.mul.Tensor, (IMAGES, torch.randn_like(IMAGES))),
    (aten.mul.Scalar, (GRADIENT.t(), 2.5)),
    (aten.div.Tensor, (GRADIENT, torch.tensor(7))),
    (aten.div.Scalar, (GRADIENT.long(), 2)),
    (aten.neg.default, (IMAGES,)),
    (aten.clone.default, (GRADIENT.t(),)),
    (aten.clone.default, (GRADIENT.t(), torch.contiguous_format)),
    (aten.sum.dim_IntList, (IMAGES, [0, 2, 3])),
    (aten.sum.dim_IntList, (GRADIENT.t(), [-1], True)),
    (aten.sum.dim_IntList, (GRADIENT, [])),
    (aten.sum.dim_IntList, (GRADIENT.long(), [0])),
    (aten.mean.dim, (GRADIENT, [0], True)),
    (aten.gelu_backward.default, (GRADIENT, WIDE)),
    (aten.threshold_backward.default, (GRADIENT, TRANSPOSED, 0)),
    (aten.threshold_backward.default, (IMAGES, torch.randn_like(IMAGES), 0)),
    (aten.tanh_backward.default, (GRADIENT, WIDE)),
    (aten.sigmoid_backward.default, (GRADIENT, WIDE)),
    (aten.silu_backward.default, (GRADIENT, WIDE)),
    (aten._softmax_backward_data.default, (GRADIENT, WIDE, -1, torch.float32)),
    (aten._softmax_backward_data.default, (GRADIENT.t(), WIDE.t(), 0, torch.float32)),
    (aten._log_softmax_backward_data.default, (GRADIENT, WIDE, 1, torch.float32)),
    (aten._log_softmax_backward_data.default, (GRADIENT, WIDE, 1, torch.bfloat16)),
    (aten.nll_loss_backward.default, (torch.tensor(0.0), WIDE, ROWS, None, 1, -100, torch.tensor(64.0))),
    (aten.nll_loss_backward.default, (torch.tensor(0.0), TRANSPOSED, ROWS, None, 1, -100, torch.tensor(64.0))),
    (aten.embedding_dense_backward.default, (GRADIENT, ROWS, 100, -1, False)),
    *[
        (aten.convolution_backward.default, case)
        for case in (
            _convolution((4, 8, 9, 9), (16, 8, 3, 3)),
            _convolution((4, 8, 9, 9), (16, 8, 1, 1), padding=(0, 0)),
            _convolution((4, 8, 9, 9), (16, 8, 3, 3), stride=(2, 2)),
            _convolution((4, 16, 9, 9), (16, 1, 3, 3), groups=16),
            _convolution((4, 16, 19, 9), (16, 8, 3, 3), groups=2, dilation=(2, 2)),
            _convolution((1, 1, 80, 80), (1, 1, 3, 3)),
            _convolution((4, 16, 1, 90), (16, 16, 1, 3), padding=(0, 1)),
            _convolution((2, 8, 5, 9, 9), (16, 8, 3, 3, 3)),
            _convolution((4, 8, 9, 9), (8, 16, 3, 3), transposed=True),
            _convolution((4, 8, 9, 9), (16, 8, 3, 3), wanted=(False, True, False)),
            _convolution((4, 8, 9, 9), (16, 8, 3, 3), memory_format=torch.channels_last),
            _convolution((4, 8, 9, 9), (16, 8, 3, 3), dtype=torch.bfloat16),
        )
    ],
    *[
        (aten.native_layer_norm_backward.default, case)
        for case in (
            _layer_norm((64, 80), (80,)),
            _layer_norm((4, 9, 10, 16), (10, 16)),
            _layer_norm((64, 80), (80,), wanted=(False, True, True)),
            (GRADIENT, WIDE, [80], torch.zeros(64, 1), torch.ones(64, 1), None, None, [True, False, False]),
            (
                GRADIENT,
                TRANSPOSED,
                [80],
                torch.zeros(64, 1),
                torch.ones(64, 1),
                torch.ones(80),
                None,
                [True, True, False],
            ),
        )
    ],
    *[
        (aten.native_batch_norm_backward.default, case)
        for case in (
            _batch_norm((4, 8, 16, 16)),
            _batch_norm((64, 80)),
            _batch_norm((64, 8, 10)),
            _batch_norm((64, 80), train=False),
            _batch_norm((4, 8, 16, 16), memory_format=torch.channels_last),
            _batch_norm((4, 8, 16, 16), wanted=(True, False, False)),
        )
    ],
    (aten.select_backward.default, (GRADIENT, [4, 64, 80], 0, 1)),
    (aten.slice_backward.default, (GRADIENT, [64, 90], 1, 0, 80, 1)),
]


def _run(zeros: ZeroGradients, op, *args, **kwargs):
    return zeros.run(Node(op, args, kwargs, (), UNKNOWN_SOURCE), args, kwargs)


def _positional(op, args):
    if op is aten.clone.default and len(args) > 1:
        return args[:1], {"memory_format": args[1]}
    return args, {}


@pytest.mark.parametrize(("op", "args"), CASES, ids=[f"{number}-{op}" for number, (op, _) in enumerate(CASES)])
def test_the_results_are_laid_out_as_eagers(op, args):
    args, kwargs = _positional(op, args)
    expected, found = op(*args, **kwargs), _run(ZeroGradients([args[0]]), op, *args, **kwargs)
    assert type(found) is type(expected)
    pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    for ours, eagers in pairs:
        assert (ours is None) == (eagers is None)
        if eagers is not None:
            assert (ours.shape, ours.stride(), ours.dtype) == (eagers.shape, eagers.stride(), eagers.dtype)
            assert ours.count_nonzero() == 0 == eagers.count_nonzero()


@pytest.mark.parametrize("op", [op for op, (_, rule) in LINEAR.items() if rule.__name__ != "_unknown"], ids=str)
def test_every_layout_that_is_known_has_a_case(op):
    assert op in {case for case, _ in CASES}


@pytest.mark.parametrize("op", ADDITIVE, ids=str)
def test_sums_of_zeros_are_zeros(op):
    def given(other):
        return ([GRADIENT, other],) if op in (aten.cat.default, aten.stack.default) else (GRADIENT, other)

    other = torch.zeros(64, 80)
    zeros = ZeroGradients([GRADIENT, other])
    found, expected = _run(zeros, op, *given(other)), op(*given(other))
    assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)
    product = aten.bmm.default if found.dim() == 3 else aten.mm.default
    poison = torch.full((*found.shape[:-2], 80, 72), torch.nan)
    assert not _run(zeros, product, found, poison).isnan().any()
    assert _run(ZeroGradients([GRADIENT]), op, *given(WIDE)).any()


def test_large_products_are_not_computed():
    poison = torch.full((80, 72), torch.nan)
    zeros = ZeroGradients([GRADIENT])
    transposed = _run(zeros, aten.t.default, GRADIENT)
    assert not _run(zeros, aten.mm.default, GRADIENT, poison).isnan().any()
    assert not _run(zeros, aten.mm.default, transposed, poison[:64]).isnan().any()
    small = torch.zeros(2, 4)
    assert small.numel() < WORTH
    assert _run(ZeroGradients([small]), aten.mm.default, small, poison[:4, :5]).isnan().all()


def test_memory_that_was_written_is_no_longer_taken_for_zeros():
    gradient = torch.zeros(64, 80)
    zeros = ZeroGradients([gradient])
    view = _run(zeros, aten.view.default, gradient, [80, 64])
    _run(zeros, aten.add_.Tensor, view, torch.ones(80, 64))
    assert (_run(zeros, aten.mm.default, gradient, torch.ones(80, 72)) == 80).all()


def test_what_is_not_computed_is_recorded():
    weight = torch.randn(80, 72, requires_grad=True)
    x = torch.randn(64, 80, requires_grad=True)
    joint = capture(lambda x, w: (x @ w).sigmoid().sum(), (x, weight), {}, "f").joint
    shapes = [node.output.type.shape for node in joint.graph.nodes if node.op is aten.mm.default]
    assert sorted(shapes) == [(64, 72), (64, 80), (80, 72)]
