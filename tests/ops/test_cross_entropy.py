"""The chunked cross entropy of a linear layer has the value and the gradients of the whole one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dsjit.ops import cross_entropy
from dsjit.ops.cross_entropy import MEAN, SUM, linear_cross_entropy

FORMS = [
    (torch.float32, False),
    *[(dtype, form) for dtype in (torch.bfloat16, torch.float16) for form in (True, False)],
]
"""dtypes, and whether logits are converted to float32."""


def operands(dtype, rows=70, features=16, classes=40):
    torch.manual_seed(0)
    tensors = [torch.randn(rows, features), torch.randn(features, classes), torch.randn(classes)]
    target = torch.randint(0, classes, (rows,))
    target[[3, 68]] = -100
    return [tensor.to(dtype).requires_grad_() for tensor in tensors], target


def whole(hidden, matrix, bias, target, reduction, widened=False):
    logits = hidden @ matrix if bias is None else torch.addmm(bias, hidden, matrix)
    logits = logits.float() if widened else logits
    return F.cross_entropy(logits, target, reduction="mean" if reduction == MEAN else "sum")


def gradients_of_whole(tensors, target, reduction, widened=False):
    loss = whole(*tensors, target, reduction, widened)
    d_hidden, d_matrix, d_bias = torch.autograd.grad(loss, tensors)
    return loss, d_hidden, d_matrix.t(), d_bias


def root_mean_square(error):
    return error.double().square().mean().sqrt()


@pytest.mark.parametrize("reduction", [MEAN, SUM])
@pytest.mark.parametrize("chunk_bytes", [1, 2**20])
@pytest.mark.parametrize(("dtype", "widened"), FORMS)
def test_is_no_further_from_fp64_than_the_whole(monkeypatch, dtype, widened, reduction, chunk_bytes):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(cross_entropy, "PIECE_BYTES", 5 * 40 * 4)
    tensors, target = operands(dtype, rows=300)
    expected = gradients_of_whole(tensors, target, reduction, widened)
    truths = gradients_of_whole([tensor.detach().double().requires_grad_() for tensor in tensors], target, reduction)
    with torch.no_grad():
        loss, count, *found = linear_cross_entropy(*tensors, target, reduction, -100, (True, True, True), widened)
    assert count == 298 and loss.dtype is count.dtype is expected[0].dtype
    assert all(each.dtype is torch.float32 for each in found)
    for actual, eager, truth in zip((loss, *found), expected, truths, strict=True):
        error, allowed = root_mean_square(actual.to(dtype) - truth), root_mean_square(eager - truth)
        assert error <= max(1.5 * allowed, torch.finfo(dtype).eps * truth.abs().max())


@pytest.mark.parametrize(("dtype", "widened"), FORMS)
def test_what_eager_rounds_is_rounded(dtype, widened):
    """With one row, nothing is added up in another order."""
    (hidden, *others), _ = operands(dtype)
    tensors, target = [hidden[:1], *others], torch.tensor([7])
    eager, _, _, d_bias = gradients_of_whole(tensors, target, SUM, widened)
    with torch.no_grad():
        loss, _, gradient = linear_cross_entropy(*tensors, target, SUM, -100, (False, False, True), widened)
    assert torch.equal(loss, eager)
    torch.testing.assert_close(gradient.to(dtype), d_bias, rtol=torch.finfo(dtype).eps, atol=6e-8)


def test_shares_of_a_mean_that_float16_cannot_hold_are_not_lost():
    """Of 50,000 classes and 4096 rows, the share of a class is some 5e-9, and the least number is 6e-8."""
    torch.manual_seed(0)
    rows, classes = 4096, 50_000
    tensors = [torch.randn(rows, 1).half(), torch.randn(1, classes).half() / 8, None]
    target = torch.randint(0, 10, (rows,))
    *_, found = linear_cross_entropy(*tensors, target, MEAN, -100, (False, True, False), True)
    shares = torch.softmax(tensors[0].double() @ tensors[1].double(), 1) / rows
    truth = (tensors[0].double().t() @ shares).t()[10:]
    assert root_mean_square(found[10:] - truth) <= 1e-2 * root_mean_square(truth)


def test_a_row_that_does_not_count_may_have_an_infinite_loss():
    tensors, target = operands(torch.float32)
    with torch.no_grad():
        tensors[2][0] = -torch.inf  # the class that stands for the one that is ignored
        target[target == 0] = 1
        loss, _ = linear_cross_entropy(*tensors, target, MEAN, -100, (False, False, False), False)
        torch.testing.assert_close(loss, whole(*tensors, target, MEAN))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, False)])
def test_computes_the_gradients_that_are_wanted(wanted):
    tensors, target = operands(torch.float64)
    every = gradients_of_whole(tensors, target, SUM)[1:]
    with torch.no_grad():
        _, _, *gradients = linear_cross_entropy(*tensors, target, SUM, -100, wanted, False)
    expected = [gradient for gradient, is_wanted in zip(every, wanted, strict=True) if is_wanted]
    assert len(gradients) == len(expected)
    for actual, eager in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual, eager)


def test_the_mean_of_no_targets_is_nan_and_its_gradient_zero():
    (hidden, matrix, _), _ = operands(torch.float32)
    target = torch.full((70,), -100)
    with torch.no_grad():
        loss, count, gradient = linear_cross_entropy(
            hidden, matrix, None, target, MEAN, -100, (True, False, False), False
        )
    assert loss.isnan() and count == 0 and not gradient.any()
    eager = torch.autograd.grad(whole(hidden, matrix, None, target, MEAN), hidden)[0]
    assert torch.equal(eager, gradient)


@pytest.mark.parametrize("wrong", [40, -1])
def test_a_target_that_is_no_class_is_an_error(wrong):
    tensors, target = operands(torch.float32)
    target[5] = wrong
    with torch.no_grad(), pytest.raises(RuntimeError, match="out of bounds"):
        linear_cross_entropy(*tensors, target, MEAN, -100, (True, True, True), False)
