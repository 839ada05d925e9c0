"""Cross entropies of linear layers become one op where that keeps fewer bytes, and only where nothing else looks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dsjit
from benchmarks.memory import peak_of_step
from dsjit.ops import cross_entropy
from dsjit.passes import chunk_cross_entropy as module
from tests.graphs import graph_from_text, printed

ROWS, FEATURES, CLASSES = 96, 8, 120


@pytest.fixture(autouse=True)
def _small_logits_count(monkeypatch):
    monkeypatch.setattr(module, "SMALLEST_LOGITS", 1)
    monkeypatch.setattr(module, "has_matrix_units", lambda dtype: False)


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


def converted_to_float32(h, w, b, y):
    return F.cross_entropy(F.linear(h, w, b).float(), y)


def converted_in_three_dimensions(h, w, b, y):
    logits = F.linear(h.view(4, -1, FEATURES), w).float()
    return F.cross_entropy(logits.view(-1, CLASSES), y, reduction="sum") * b.sum().float()


def under_autocast(h, w, b, y):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.cross_entropy(F.linear(h.float(), w.float(), b.float()), y)


def using_the_converted_logits_again(h, w, b, y):
    logits = F.linear(h, w, b).float()
    return F.cross_entropy(logits, y) + logits.square().mean()


def using_the_logits_before_they_are_converted(h, w, b, y):
    logits = F.linear(h, w, b)
    return F.cross_entropy(logits.float(), y) + logits.square().mean()


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


def operands(frozen=(), dtype=torch.float64):
    torch.manual_seed(0)
    shapes = {"h": (ROWS, FEATURES), "w": (CLASSES, FEATURES), "b": (CLASSES,)}
    tensors = [
        torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(name not in frozen)
        for name, shape in shapes.items()
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
    assert is_chunked(jitted, tensors, target) is chunked


def is_chunked(jitted, tensors, target):
    return "linear_cross_entropy" in [call.op for call in dsjit.explain(jitted)(*tensors, target).library_calls]


def root_mean_square(error):
    return error.double().square().mean().sqrt()


@pytest.mark.parametrize("function", [linear, without_bias, by_a_matrix, in_three_dimensions, tied])
def test_is_computed_in_chunks(function):
    assert_as_eager(function, chunked=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "function",
    [linear, without_bias, tied, converted_to_float32, converted_in_three_dimensions, under_autocast],
)
def test_reduced_precision_is_computed_in_chunks_no_further_from_fp64_than_eager(function, dtype):
    jitted = dsjit.jit(function)
    tensors, target = operands(dtype=dtype)
    expected = run(function, tensors, target)
    run(jitted, tensors, target)
    found = run(jitted, tensors, target)
    with torch.autocast("cpu", enabled=False):
        plain = {under_autocast: linear}.get(function, function)
        truths = run(plain, [tensor.detach().double().requires_grad_() for tensor in tensors], target)
    for actual, eager, truth in zip(found, expected, truths, strict=True):
        assert actual.dtype is eager.dtype
        error, allowed = root_mean_square(actual - truth), root_mean_square(eager - truth)
        assert error <= max(1.5 * allowed, torch.finfo(dtype).eps * truth.abs().max())
    assert is_chunked(jitted, tensors, target)


@pytest.mark.parametrize("function", [using_the_converted_logits_again, using_the_logits_before_they_are_converted])
def test_converted_logits_are_left_alone_when_they_have_other_readers(function):
    tensors, target = operands(dtype=torch.bfloat16)
    jitted = dsjit.jit(function)
    run(jitted, tensors, target)
    assert not is_chunked(jitted, tensors, target)


ROUNDED_BY_LOG_SOFTMAX = """
def graph(x0: bf16[1024, 16], x1: bf16[8192, 16], x2: i64[1024], x3: bf16[()]):
    t4 = aten.t.default(x1)
    t5 = aten.mm.default(x0, t4)
    t6 = aten._log_softmax.default(t5, 1, False)
    t7, t8 = aten.nll_loss_forward.default(t6, x2, None, 1, -100)
    t9 = aten.nll_loss_backward.default(x3, t6, x2, None, 1, -100, t8)
    t10 = aten._log_softmax_backward_data.default(t9, t6, 1, torch.bfloat16)
    t11 = aten.t.default(t10)
    t12 = aten.mm.default(t11, x0)
    return t7, t12
"""

CONVERTED = """
def graph(x0: bf16[1024, 16], x1: bf16[8192, 16], x2: i64[1024], x3: f32[()]):
    t4 = aten.t.default(x1)
    t5 = aten.mm.default(x0, t4)
    t6 = aten._to_copy.default(t5, dtype=torch.float32)
    t7 = aten._log_softmax.default(t6, 1, False)
    t8, t9 = aten.nll_loss_forward.default(t7, x2, None, 1, -100)
    t10 = aten.nll_loss_backward.default(x3, t7, x2, None, 1, -100, t9)
    t11 = aten._log_softmax_backward_data.default(t10, t7, 1, torch.float32)
    t12 = aten._to_copy.default(t11, dtype=torch.bfloat16)
    t13 = aten.t.default(t12)
    t14 = aten.mm.default(t13, x0)
    return t8, t14
"""

CONVERTED_BY_LOG_SOFTMAX = """
def graph(x0: f16[1024, 16], x1: f16[8192, 16], x2: i64[1024], x3: f32[()]):
    t4 = aten.t.default(x1)
    t5 = aten.mm.default(x0, t4)
    t6 = aten._log_softmax.default(t5, 1, True)
    t7, t8 = aten.nll_loss_forward.default(t6, x2, None, 1, -100)
    t9 = aten.nll_loss_backward.default(x3, t6, x2, None, 1, -100, t8)
    t10 = aten._log_softmax_backward_data.default(t9, t6, 1, torch.float16)
    t11 = aten.t.default(t10)
    t12 = aten.mm.default(t11, x0)
    return t7, t12
"""


@pytest.mark.parametrize(
    ("before", "dtype", "of_loss", "widened"),
    [
        (ROUNDED_BY_LOG_SOFTMAX, "bf16", "bf16", False),
        (CONVERTED, "bf16", "f32", True),
        (CONVERTED_BY_LOG_SOFTMAX, "f16", "f32", True),  # as under autocast on a GPU
    ],
)
def test_gradients_in_reduced_precision_are_rounded_when_all_is_multiplied(before, dtype, of_loss, widened):
    long_name = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    after = f"""
def graph(x0: {dtype}[1024, 16], x1: {dtype}[8192, 16], x2: i64[1024], x3: {of_loss}[()]):
    t4 = aten.t.default(x1)
    t5, t6, t7 = linear_cross_entropy(x0, t4, None, x2, 1, -100, [False, True, False], {widened})
    t8 = aten.mul.Tensor(t7, x3)
    t9 = aten._to_copy.default(t8, dtype={long_name})
    return t5, t9
"""
    graph = module.chunk_cross_entropy(graph_from_text(before))
    assert printed(graph) == after.strip()
    *_, product, _ = graph.nodes
    assert product.output.type.dtype is torch.float32


@pytest.mark.parametrize("frozen", ["h", "w", "b", "hb"])
def test_is_computed_in_chunks_when_some_operands_need_no_gradient(frozen):
    assert_as_eager(linear, chunked=True, frozen=frozen)


@pytest.mark.parametrize("function", [returning_the_logits, using_the_logits_again, smoothed, unreduced])
def test_is_left_alone_when_logits_or_their_gradients_have_other_readers(function):
    assert_as_eager(function, chunked=False)


def test_is_left_alone_when_the_gradients_are_larger_than_the_logits(monkeypatch):
    monkeypatch.setattr(module, "GAIN", 100)
    assert_as_eager(linear, chunked=False)


def test_where_narrow_products_are_fast_they_stay_whole(monkeypatch):
    monkeypatch.setattr(module, "has_matrix_units", lambda dtype: dtype is torch.bfloat16)
    in_bfloat16, in_float16 = graph_from_text(ROUNDED_BY_LOG_SOFTMAX), graph_from_text(CONVERTED_BY_LOG_SOFTMAX)
    assert module.chunk_cross_entropy(in_bfloat16) is in_bfloat16
    assert module.chunk_cross_entropy(in_float16) is not in_float16


@pytest.mark.parametrize("function", [linear, converted_to_float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_peak_of_reduced_precision_is_far_below_eagers(monkeypatch, function, dtype):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 2**20)
    monkeypatch.setattr(cross_entropy, "PIECE_BYTES", 2**18)
    rows, classes = 2048, 4096
    model = nn.Linear(FEATURES, classes, dtype=dtype)
    hidden = torch.randn(rows, FEATURES, dtype=dtype, requires_grad=True)
    target = torch.randint(0, classes, (rows,))

    def step(model, hidden, target):
        return function(hidden, model.weight, model.bias, target)

    jitted = dsjit.jit(step)
    for _ in range(2):
        jitted(model, hidden, target).backward()
    logits = rows * classes * dtype.itemsize
    assert peak_of_step(model, (hidden, target), step) > 2 * logits
    assert peak_of_step(model, (hidden, target), jitted) < logits / 2


def test_a_target_that_is_no_class_is_eagers_error():
    jitted = dsjit.jit(linear)
    tensors, target = operands()
    run(jitted, tensors, target)
    run(jitted, tensors, target)
    target[5] = CLASSES
    with pytest.raises(IndexError, match="out of bounds"):
        jitted(*tensors, target)
