"""What becomes one kernel: Python before, kernels and their ops after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dsjit
from dsjit.api.explain import Explanation
from tests.api.checks import check

X = torch.linspace(-2, 2, 8 * 32).reshape(8, 32)
W = torch.linspace(0.5, 1.5, 32)


def explained(function: Callable[..., Any], *args: torch.Tensor) -> Explanation:
    """The explanation of `function`, which equals eager and runs compiled."""
    with torch.no_grad():
        check(function, *args)
        explanation: Explanation = dsjit.explain(function)(*args)
    assert explanation.eager_reasons == ()
    return explanation


def chain(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = x.sigmoid() * x.tanh() + x
    return (F.gelu(y) * w + y.exp().clamp(-5, 5)).abs().sqrt()


def scalar_broadcast(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (x[:, :1] * w).exp() + x.new_ones(()) * 2


def several(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = x.exp()
    z = y * w
    return y, z, (z + 1).log()


def through_views(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = (x + 1).view(8, 4, 8).transpose(1, 2).reshape(8, 8, 4)
    return y.permute(2, 0, 1).unsqueeze(1).expand(4, 2, 8, 8).flip(0)[1:] * 2


def rotary(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    half = torch.cat((-x[..., 16:], x[..., :16]), dim=-1)
    return x * w + half * w


def standardised(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    variance, mean = torch.var_mean(x, -1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def rms_norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w


def group_norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x.view(2, 4, 32), 2, w[:4], w[4:8])


def batch_norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.batch_norm(x.view(2, 4, 32), w[:4], w[4:8], w[8:12], w[12:16]).relu()


def normalised_softmax(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (F.layer_norm(x, (32,), w) * 0.125).softmax(-1)


ONE_KERNEL: dict[str, Callable[..., Any]] = {
    "pointwise chain": chain,
    "broadcast": scalar_broadcast,
    "several outputs": several,
    "views": through_views,
    "rotary concatenation": rotary,
    "softmax": lambda x, w: x.softmax(-1),
    "log softmax": lambda x, w: x.log_softmax(-1),
    "softmax over rows": lambda x, w: x.softmax(0),
    "layer norm": lambda x, w: F.layer_norm(x, (32,), w, w),
    "rms norm": rms_norm,
    "group norm": group_norm,
    "batch norm": batch_norm,
    "variance and mean": standardised,
    "argmax": lambda x, w: (x * w).argmax(-1),
    "prologue of a reduction": lambda x, w: (x * w).exp().sum(-1),
    "epilogue of a reduction": lambda x, w: (x.sum(-1).sqrt() + 1).log(),
    "masked softmax": lambda x, w: (x * 0.125).masked_fill(x > 1, float("-inf")).softmax(-1),
    "norm then softmax": normalised_softmax,
    "residual norm": lambda x, w: F.layer_norm(x + F.gelu(x), (32,), w) * 2,
    "sum of everything": lambda x, w: (x * w).sum(),
    "cast and back": lambda x, w: (x.bfloat16() * w.bfloat16()).float() + x,
}


@pytest.mark.parametrize("capability", ONE_KERNEL)
def test_one_kernel(capability: str) -> None:
    explanation = explained(ONE_KERNEL[capability], X, W)
    assert len(explanation.kernels) == 1, explanation
    assert explanation.library_calls == ()
    assert explanation.arena_bytes == 0


@pytest.mark.parametrize(
    ("function", "read", "written"),
    [
        (lambda x, w: x.softmax(-1), 1, 1),
        (lambda x, w: x.log_softmax(-1), 1, 1),
        (lambda x, w: F.layer_norm(x, (32,)), 1, 1),
        (lambda x, w: (x.exp() + 1).log() * x, 1, 1),
        (lambda x, w: x.t().exp().t() + 1, 1, 1),
        (lambda x, w: x.sigmoid() * x + x.view(-1).view(8, 32), 1, 1),
        (lambda x, w: (x.exp(), x.exp().sin()), 1, 2),
        (lambda x, w: (x * 0.125).softmax(-1) * 3 + 1, 1, 1),
    ],
    ids=["softmax", "log softmax", "layer norm", "chain", "transposed", "views", "two outputs", "scaled softmax"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fused_kernel_moves_each_element_once(
    function: Callable[..., Any], read: int, written: int, dtype: torch.dtype
) -> None:
    x = X.to(dtype)
    (kernel,) = explained(function, x, W.to(dtype)).kernels
    assert kernel.bytes_read == read * x.numel() * x.element_size()
    assert kernel.bytes_written == written * x.numel() * x.element_size()


def test_a_broadcast_operand_is_counted_once() -> None:
    (kernel,) = explained(lambda x, w: x * w, X, W).kernels
    assert kernel.bytes_read == X.nbytes + W.nbytes


def test_a_slice_reads_what_it_takes() -> None:
    (kernel,) = explained(lambda x, w: x[:4, ::2] + 1, X, W).kernels
    assert (kernel.bytes_read, kernel.bytes_written) == (X.nbytes // 4, X.nbytes // 4)


def test_traffic_before_and_after_fusion() -> None:
    explanation = explained(lambda x, w: (x.exp() + 1).log(), X, W)
    assert explanation.bytes_before == 6 * X.nbytes
    assert explanation.bytes_after == 2 * X.nbytes


def test_every_kernel_names_its_ops_and_lines() -> None:
    explanation = explained(several, X, W)
    (kernel,) = explanation.kernels
    assert set(kernel.ops) == {"aten.exp.default", "aten.mul.Tensor", "aten.add.Tensor", "aten.log.default"}
    first = several.__code__.co_firstlineno
    assert {source.line for source in kernel.sources} == {first + 1, first + 2, first + 3}
    assert kernel.text in "\n".join(k.text for k in explanation.kernels)
    assert kernel.name in str(explanation)


def test_the_printed_kernel_of_a_chain() -> None:
    (kernel,) = explained(lambda x: x.neg() * 2, torch.ones(4, 3)).kernels
    assert "for" in kernel.text and "neg" in kernel.text and "mul" in kernel.text
    assert len(kernel.text.splitlines()) <= 8


def test_a_matrix_product_stands_between_two_kernels() -> None:
    explanation = explained(lambda x, w: (x.exp() @ w.sigmoid()).relu() * 2, X, torch.randn(32, 16))
    assert [len(kernel.ops) for kernel in explanation.kernels] == [1, 1, 2]
    assert [call.op for call in explanation.library_calls] == ["aten.mm.default"]


def test_an_op_whose_result_is_needed_by_a_library_call_and_a_kernel_is_computed_once() -> None:
    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        return y @ w + y.sum(-1, keepdim=True)

    explanation = explained(f, X, torch.randn(32, 16))
    ops = [op for kernel in explanation.kernels for op in kernel.ops]
    assert ops.count("aten.exp.default") == 1


@pytest.mark.parametrize(
    ("shape", "dim", "layout", "kernels"),
    [
        ((2048, 32), 1, torch.contiguous_format, 2),
        ((8, 32), 1, torch.contiguous_format, 1),
        ((2048, 32), 0, torch.contiguous_format, 1),
        ((4, 32, 16, 16), 1, torch.channels_last, 2),
        ((4, 32, 16, 16), 1, torch.contiguous_format, 1),
    ],
    ids=["columns", "few columns", "rows", "channels last", "channels first"],
)
def test_a_quotient_is_computed_once_where_lanes_would_repeat_it(
    shape: tuple[int, ...], dim: int, layout: torch.memory_format, kernels: int
) -> None:
    """Before: (x + 2) * (1 / w). After: 1 / w is a kernel of its own; or, where it is the same for all lanes, before
    their loop."""
    x = torch.randn(shape).contiguous(memory_format=layout)
    w = torch.rand([size if d == dim else 1 for d, size in enumerate(shape)]) + 0.5
    assert len(explained(lambda x, w: (x + 2) * (1 / w), x, w).kernels) == kernels


def test_fusing_never_makes_a_cycle() -> None:
    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        z = y @ w
        return y + z @ w.t().sigmoid() @ w + y * z

    explained(f, X, torch.randn(32, 32) * 0.1)


def test_reasons_name_producer_consumer_and_obstacle() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        y = x.sum(1)
        return x + y.tanh().sum() * x.cos()

    explanation = explained(f, X)
    assert len(explanation.kernels) > 1
    assert explanation.reasons
    for reason in explanation.reasons:
        assert "aten." in reason and "test_capabilities.py" in reason


def test_dead_code_and_common_subexpressions_cost_nothing() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        x.cos()
        return x.exp() + x.exp()

    (kernel,) = explained(f, X).kernels
    assert kernel.ops == ("aten.exp.default", "aten.add.Tensor")


def test_a_whole_feed_forward_is_two_products_and_two_kernels() -> None:
    block = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
    explanation = explained(lambda x: x + block(x), X)
    assert len(explanation.library_calls) == 2
    assert len(explanation.kernels) == 3
