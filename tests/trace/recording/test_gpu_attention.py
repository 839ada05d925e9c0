"""Attention as GPUs have it is captured: its ops return sizes beside tensors, and are said to draw random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import dsjit
from dsjit.ir.graph import Node, TensorType, Value
from dsjit.ops.properties import draws
from dsjit.trace.capture import capture
from tests.gpu_attention import gpu_attention

aten = torch.ops.aten

CPU = torch.device("cpu")

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def ops() -> Iterator[None]:
    with gpu_attention():
        yield


def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return aten._scaled_dot_product_flash_attention.default(q * 2, k, v, 0.0, True)[0] + 1


def cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    needed = torch.is_grad_enabled()
    return aten._scaled_dot_product_cudnn_attention.default(q * 2, k, v, None, needed, 0.0, True)[0] + 1


def efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    needed = torch.is_grad_enabled()
    return aten._scaled_dot_product_efficient_attention.default(q * 2, k, v, None, needed, 0.0, True)[0] + 1


def heads() -> list[torch.Tensor]:
    return list(torch.randn(3, 2, 4, 16, 8, generator=torch.Generator().manual_seed(1)))


BACKENDS = pytest.mark.parametrize("attention", [flash, cudnn, efficient])


@BACKENDS
def test_it_is_one_graph(attention: Attention) -> None:
    jitted = dsjit.jit(attention, fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(jitted(*heads()), attention(*heads()))


@BACKENDS
def test_its_gradients_are_compiled(attention: Attention) -> None:
    jitted = dsjit.jit(attention, fullgraph=True)
    found, expected = (
        [tensor.requires_grad_() for tensor in heads()],
        [tensor.requires_grad_() for tensor in heads()],
    )
    jitted(*found).square().sum().backward()
    attention(*expected).square().sum().backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@BACKENDS
def test_a_step_with_its_backward_is_one_graph(attention: Attention) -> None:
    def step(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in given]
            return torch.autograd.grad(attention(*leaves).square().sum(), leaves)

    jitted = dsjit.jit(step, fullgraph=True)
    for _ in range(2):
        for one, other in zip(jitted(*heads()), step(*heads()), strict=True):
            torch.testing.assert_close(one, other)


def test_sizes_among_the_results_are_no_look_at_what_tensors_hold() -> None:
    captured = capture(flash, tuple(heads()), {}, "f")
    assert len(captured.segments) == 1 and captured.problems == ()
    (node,) = [node for node in captured.segments[0].graph.nodes if "attention" in str(node.op)]
    assert len(node.outputs) == 9


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, False), (0.5, True)])
def test_attention_draws_where_it_drops(dropout: float, expected: bool) -> None:
    op = aten._scaled_dot_product_cudnn_attention.default
    shown = [Value(number, TensorType((1, 1, 8, 8), torch.bfloat16, (64, 64, 8, 1), CPU)) for number in range(3)]
    assert draws(Node(op, (*shown, None, True, dropout), {}, (), effect=True)) == expected
    assert not draws(Node(op, (*shown, None, True), {}, (), effect=True))
    assert draws(Node(aten.bernoulli.default, shown[:1], {}, (), effect=True))
