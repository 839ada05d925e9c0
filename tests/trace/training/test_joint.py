"""The backward of a traced call is recorded as autograd's engine would run it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dsjit.ir.verify_graph import verify_graph
from dsjit.passes.reference import run_reference
from dsjit.trace.capture import capture


def shared(x, w):
    y = x @ w
    return (y.sin() * y + y.exp()).sum() + (w * w).sum()


def broadcast(x, w):
    return (x + w[0]).relu() * w.mean()


def in_place(x, w):
    y = x @ w
    y[1:] *= 2
    y.relu_()
    return y + x[:, :1]


def split(x, w):
    first, second = (x @ w).chunk(2, dim=1)
    return first * second.sigmoid()


def other_dtype(x, w):
    return (x.double() @ w.double()).float().softmax(-1)


def partly_unused(x, w):
    values, _ = torch.sort(x @ w)
    return values[:, :2]


def lookup(x, w):
    return F.embedding(torch.tensor([0, 2, 0]), w) @ x.t()


@pytest.mark.parametrize("function", [shared, broadcast, in_place, split, other_dtype, partly_unused, lookup])
def test_the_recorded_gradients_are_autograds_bit_for_bit(function):
    torch.manual_seed(0)
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    joint = capture(function, (x, w), {}, "f").joint
    verify_graph(joint.graph)
    result = function(x, w)
    tangent = torch.randn_like(result)
    expected = torch.autograd.grad(result, (x, w), tangent, allow_unused=True)
    by_place = [x if value.type.shape == x.shape else w for value in joint.graph.inputs[: joint.primals]]
    found = run_reference(joint.graph, [*(t.detach().clone() for t in by_place), tangent])
    assert torch.equal(found[0], result)
    gradients = [None if n is None else found[joint.results + n] for n in joint.gradients]
    wanted = dict(zip((id(x), id(w)), expected, strict=True))
    for tensor, gradient in zip(by_place, gradients, strict=True):
        assert torch.equal(gradient, wanted[id(tensor)])


def test_the_call_is_still_eager_and_nothing_of_its_graph_is_used_up():
    x = torch.randn(3, requires_grad=True)
    seen = []
    x.register_hook(seen.append)
    result = capture(lambda t: (t * t).sum(), (x,), {}, "f").result
    assert type(result.grad_fn).__name__ == "SumBackward0" and not seen and x.grad is None
    result.backward()
    assert torch.equal(x.grad, 2 * x.detach()) and len(seen) == 1


def test_nodes_of_the_backward_belong_to_the_lines_of_their_forward():
    def function(t):
        y = t.sin()
        return y.exp()

    joint = capture(function, (torch.randn(3, requires_grad=True),), {}, "f").joint
    lines = {str(node.op): node.source.line for node in joint.graph.nodes}
    first = function.__code__.co_firstlineno
    assert lines["aten.sin.default"] == lines["aten.cos.default"] == first + 1
    assert lines["aten.exp.default"] == first + 2


def test_without_gradients_nothing_is_recorded():
    x = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        assert capture(lambda t: t * 2, (x,), {}, "f").joint is None
    assert capture(lambda t: t.detach() * 2, (x,), {}, "f").joint is None
    assert capture(lambda t: t * 2, (x.detach(),), {}, "f").joint is None
