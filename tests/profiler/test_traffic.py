"""Bytes and operations of steps, against counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.fusion.lower import FusedKernel
from dsjit.profiler.traffic import kernel_flops, kernel_traffic, node_flops, node_traffic, reads_across

X = torch.randn(8, 16)


def steps(function: Callable[..., Any], *inputs: Tensor) -> list[Any]:
    jitted = dsjit.jit(function)
    with torch.no_grad():
        jitted(*inputs)
    (compilation,) = jitted_of(jitted).compilations
    return [step.work for step in compilation.steps]


def kernel(function: Callable[..., Any], *inputs: Tensor) -> FusedKernel:
    (found,) = steps(function, *inputs)
    assert isinstance(found, FusedKernel)
    return found


@pytest.mark.parametrize(
    ("function", "inputs", "read", "written", "flops"),
    [
        (lambda x: x + 1, (X,), 4 * 128, 4 * 128, 128),
        (lambda x, y: x * y + x, (X, X + 1), 2 * 4 * 128, 4 * 128, 2 * 128),
        (lambda x, y: x + y, (X, X[0].clone()), 4 * 128 + 4 * 16, 4 * 128, 128),
        (lambda x: x[:, :4] + 1, (X,), 4 * 32, 4 * 32, 32),
        (lambda x: x.sum(1), (X,), 4 * 128, 4 * 8, 128),
        (lambda x: x.long() + 1, (X,), 4 * 128, 8 * 128, 0),
    ],
    ids=["a map", "two operands", "a broadcast", "a slice", "a sum", "integers"],
)
def test_a_kernel(function: Callable[..., Any], inputs: Any, read: int, written: int, flops: int) -> None:
    found = kernel(function, *inputs)
    assert kernel_traffic(found.kernel, found.values) == (read, written)
    assert kernel_flops(found.kernel) == flops


@pytest.mark.parametrize(
    ("function", "inputs", "flops"),
    [
        (torch.mm, (torch.randn(3, 4), torch.randn(4, 5)), 2 * 3 * 4 * 5),
        (torch.bmm, (torch.randn(2, 3, 4), torch.randn(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
        (torch.cumsum, (torch.randn(3, 4), 0), 0),
        (
            lambda x, w: torch.nn.functional.conv2d(x, w, groups=2),
            (torch.randn(1, 4, 6, 6), torch.randn(8, 2, 3, 3)),
            2 * 8 * 4 * 4 * 2 * 3 * 3,
        ),
        (
            torch.nn.functional.scaled_dot_product_attention,
            tuple(torch.randn(2, 3, 8, 4) for _ in range(3)),
            2 * 2 * 2 * 3 * 8 * 8 * 4,
        ),
    ],
    ids=["mm", "bmm", "cumsum", "a convolution of groups", "attention"],
)
def test_a_library_call(function: Callable[..., Any], inputs: Any, flops: int) -> None:
    nodes = [work.node for work in steps(function, *inputs) if not isinstance(work, FusedKernel)]
    assert sum(map(node_flops, nodes)) == flops


def test_a_lookup_reads_what_it_picks() -> None:
    table, rows = torch.randn(1000, 16), torch.tensor([3, 5, 3])
    picked = (3 * 16 * 4 + 3 * 8, 3 * 16 * 4)
    (fused,) = steps(torch.nn.functional.embedding, rows, table)
    assert isinstance(fused, FusedKernel)
    assert kernel_traffic(fused.kernel, fused.values) == picked
    (node,) = fused.nodes
    assert node_traffic(node) == picked


def test_a_direct_convolution_counts_what_the_images_channels_need() -> None:
    w1, w2 = torch.randn(16, 8, 3, 3), torch.randn(16, 16, 1, 1)
    conv = torch.nn.functional.conv2d
    found = steps(lambda x: conv(conv(x, w1).relu(), w2), torch.randn(1, 8, 10, 10))
    nodes = [work.node for work in found if not isinstance(work, FusedKernel)]
    assert sum(map(node_flops, nodes)) == 2 * 64 * 16 * (8 * 9 + 16)


def test_a_read_across_rows_is_seen() -> None:
    turned = kernel(lambda x, y: x.t() + y, X, X.t().contiguous())
    straight = kernel(lambda x, y: x + y, X, X.clone())
    assert [value.type.shape for value in reads_across(turned)] in ([(8, 16)], [(16, 8)])
    assert reads_across(straight) == ()
