"""Cross entropies of linear layers become one op where that keeps fewer bytes, and only where nothing else looks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import dsjit
from dsjit.passes import chunk_cross_entropy as module

ROWS, FEATURES, CLASSES = 96, 8, 120


@pytest.fixture(autouse=True)
def _small_logits_count(monkeypatch):
    monkeypatch.setattr(module, "SMALLEST_LOGITS", 1)


def linear(h, w, b, y, **options):
    return F.cross_entropy(F.linear(h, w, b), y, **options)


def without_bias(h, w, b, y):
    return F.cross_entropy(F.linear(h, w), y) * b.sum()


def by_a_matrix(h, w, b, y):
    return F.cross_entropy(h @ w.t().contiguous(), y) * b.sum()


def in_three_dimensions(h, w, b, y):
    logits = F.linear(h.view(4, -1, FEATURES), w, b)
    return F.cross_entropy(logits.double().view(-1, CLASSES), y, reduction="sum")


def tied(h, w, b, y):
    return F.cross_entropy(F.linear(h + w[y], w, b), y)


def returning_the_logits(h, w, b, y):
    logits = F.linear(h, w, b)
    return F.cross_entropy(logits, y), logits


def using_the_logits_again(h, w, b, y):
    logits = F.linear(h, w, b)
    return F.cross_entropy(logits, y) + logits.square().mean()


def smoothed(h, w, b, y):
    return F.cross_entropy(F.linear(h, w, b), y, label_smoothing=0.1)


def unreduced(h, w, b, y):
    return F.cross_entropy(F.linear(h, w, b), y, reduction="none").square().sum()


def operands(frozen=()):
    torch.manual_seed(0)
    shapes = {"h": (ROWS, FEATURES), "w": (CLASSES, FEATURES), "b": (CLASSES,)}
    tensors = [
        torch.randn(shape, dtype=torch.float64).requires_grad_(name not in frozen) for name, shape in shapes.items()
    ]
    target = torch.randint(0, CLASSES, (ROWS,))
    target[7] = -100
    return tensors, target


def run(function, tensors, target):
    returned = function(*tensors, target)
    loss = returned[0] if isinstance(returned, tuple) else returned
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    return [loss, *torch.autograd.grad(3 * loss, wanted)]


def assert_as_eager(function, chunked, frozen=()):
    jitted = dsjit.jit(function)
    tensors, target = operands(frozen)
    expected = run(function, tensors, target)
    run(jitted, tensors, target)
    for actual, eager in zip(run(jitted, tensors, target), expected, strict=True):
        torch.testing.assert_close(actual, eager)
    calls = [call.op for call in dsjit.explain(jitted)(*tensors, target).library_calls]
    assert ("linear_cross_entropy" in calls) is chunked


@pytest.mark.parametrize("function", [linear, without_bias, by_a_matrix, in_three_dimensions, tied])
def test_is_computed_in_chunks(function):
    assert_as_eager(function, chunked=True)


@pytest.mark.parametrize("frozen", ["h", "w", "b", "hb"])
def test_is_computed_in_chunks_when_some_operands_need_no_gradient(frozen):
    assert_as_eager(linear, chunked=True, frozen=frozen)


@pytest.mark.parametrize("function", [returning_the_logits, using_the_logits_again, smoothed, unreduced])
def test_is_left_alone_when_logits_or_their_gradients_have_other_readers(function):
    assert_as_eager(function, chunked=False)


def test_is_left_alone_when_the_gradients_are_larger_than_the_logits(monkeypatch):
    monkeypatch.setattr(module, "GAIN", 100)
    assert_as_eager(linear, chunked=False)


def test_a_target_that_is_no_class_is_eagers_error():
    jitted = dsjit.jit(linear)
    tensors, target = operands()
    run(jitted, tensors, target)
    run(jitted, tensors, target)
    target[5] = CLASSES
    with pytest.raises(IndexError, match="out of bounds"):
        jitted(*tensors, target)
