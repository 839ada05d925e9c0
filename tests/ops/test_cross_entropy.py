"""The chunked cross entropy of a linear layer has the value and the gradients of the whole one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dsjit.ops import cross_entropy
from dsjit.ops.cross_entropy import MEAN, SUM, linear_cross_entropy


def operands(dtype, rows=70, features=16, classes=40):
    torch.manual_seed(0)
    tensors = [torch.randn(rows, features), torch.randn(features, classes), torch.randn(classes)]
    target = torch.randint(0, classes, (rows,))
    target[[3, 68]] = -100
    return [tensor.to(dtype).requires_grad_() for tensor in tensors], target


def whole(hidden, matrix, bias, target, reduction):
    logits = hidden @ matrix if bias is None else torch.addmm(bias, hidden, matrix)
    return F.cross_entropy(logits, target, reduction="mean" if reduction == MEAN else "sum")


def gradients_of_whole(tensors, target, reduction):
    loss = whole(*tensors, target, reduction)
    d_hidden, d_matrix, d_bias = torch.autograd.grad(loss, tensors)
    return loss, d_hidden, d_matrix.t(), d_bias


@pytest.mark.parametrize("reduction", [MEAN, SUM])
@pytest.mark.parametrize("chunk_bytes", [1, 2**20])
def test_is_no_further_from_fp64_than_the_whole(monkeypatch, reduction, chunk_bytes):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(cross_entropy, "PIECE_BYTES", 5 * 40 * 4)
    tensors, target = operands(torch.float32)
    expected = gradients_of_whole(tensors, target, reduction)
    truths = gradients_of_whole([tensor.detach().double().requires_grad_() for tensor in tensors], target, reduction)
    with torch.no_grad():
        loss, count, *gradients = linear_cross_entropy(*tensors, target, reduction, -100, (True, True, True))
    assert count == 68
    for actual, eager, truth in zip((loss, *gradients), expected, truths, strict=True):
        error, allowed = ((result - truth).square().mean().sqrt() for result in (actual, eager))
        assert error <= max(1.5 * allowed, torch.finfo(torch.float32).eps * truth.abs().max())


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, False)])
def test_computes_the_gradients_that_are_wanted(wanted):
    tensors, target = operands(torch.float64)
    every = gradients_of_whole(tensors, target, SUM)[1:]
    with torch.no_grad():
        _, _, *gradients = linear_cross_entropy(*tensors, target, SUM, -100, wanted)
    expected = [gradient for gradient, is_wanted in zip(every, wanted, strict=True) if is_wanted]
    assert len(gradients) == len(expected)
    for actual, eager in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual, eager)


def test_the_mean_of_no_targets_is_nan_and_its_gradient_zero():
    (hidden, matrix, _), _ = operands(torch.float32)
    target = torch.full((70,), -100)
    with torch.no_grad():
        loss, count, gradient = linear_cross_entropy(hidden, matrix, None, target, MEAN, -100, (True, False, False))
    assert loss.isnan() and count == 0 and not gradient.any()
    eager = torch.autograd.grad(whole(hidden, matrix, None, target, MEAN), hidden)[0]
    assert torch.equal(eager, gradient)


@pytest.mark.parametrize("wrong", [40, -1])
def test_a_target_that_is_no_class_is_an_error(wrong):
    tensors, target = operands(torch.float32)
    target[5] = wrong
    with torch.no_grad(), pytest.raises(RuntimeError, match="out of bounds"):
        linear_cross_entropy(*tensors, target, MEAN, -100, (True, True, True))
