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
def test_the_result_is_laid_out_as_eagers(op, args):
    args, kwargs = _positional(op, args)
    expected = op(*args, **kwargs)
    found = _run(ZeroGradients([args[0]]), op, *args, **kwargs)
    assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)
    assert found.count_nonzero() == 0 == expected.count_nonzero()


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
