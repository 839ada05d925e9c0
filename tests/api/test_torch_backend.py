"""dsjit behind torch.compile: `backend=dsjit.torch_backend`."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dsjit
from dsjit.api.entry import session
from dsjit.errors import OptionError
from tests.models.test_models import bert, built, llama, tensors

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    dsjit.reset_stats()
    yield
    torch._dynamo.reset()


def compiled(function: Any, **keywords: Any) -> Any:
    return torch.compile(function, backend=dsjit.torch_backend, **keywords)


def normed(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x + 1, (x.shape[-1],)) * w.sigmoid()


def test_it_is_an_entry_point_of_torch() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, name = project["entry-points"]["torch_dynamo_backends"]["dsjit"].split(":")
    assert getattr(importlib.import_module(module), name) is dsjit.torch_backend


def test_the_second_call_runs_the_program_of_the_first() -> None:
    program = compiled(normed, fullgraph=True)
    for _ in range(3):
        x, w = torch.randn(4, 16), torch.randn(16)
        torch.testing.assert_close(program(x, w), normed(x, w))
    total = dsjit.stats().total
    assert (total.calls_traced, total.calls_compiled, total.calls_eager, total.compiles) == (1, 2, 0, 1)


@pytest.mark.parametrize("make", [bert, llama])
def test_a_model_equals_eager(make: Any) -> None:
    model, tokens = built(make, torch.float32), torch.arange(10).reshape(2, 5)
    with torch.no_grad():
        expected = tensors(model(tokens))
        program = compiled(model)
        program(tokens)
        found = tensors(program(tokens))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert dsjit.stats().total.calls_compiled > 0 == dsjit.stats().total.calls_eager


def test_gradients_are_eagers_step_by_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 1))
    program = compiled(model)
    for _ in range(3):
        x = torch.randn(5, 8)
        gradients = []
        for callee in (model, program):
            model.zero_grad()
            callee(x).square().mean().backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        torch.testing.assert_close(gradients[1], gradients[0])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * parameter.grad)
    assert dsjit.stats().total.calls_compiled == 2


@pytest.mark.parametrize("dynamic", [None, True])
def test_one_program_serves_the_sizes_that_dynamo_holds_to_be_dynamic(dynamic: bool | None) -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x.reshape(-1).view(1, x.shape[0], -1) + 1).softmax(-1), y.relu() * 1.5

    program = compiled(f, dynamic=dynamic)
    for rows in (4, 6, 8, 10, 14):
        arguments = torch.randn(rows, 6), torch.randn(rows + 3)
        torch.testing.assert_close(program(*arguments), f(*arguments))
    assert dsjit.stats().total.recompiles == 0
    assert dsjit.stats().total.compiles <= (1 if dynamic else 2)


def test_inputs_that_are_numbers_are_right_for_each_value() -> None:
    program = compiled(lambda x, n: (x * n).relu())
    for n in (2, 3, 5, 2, 7):
        x = torch.randn(4)
        assert torch.equal(program(x, n), (x * n).relu())


def test_what_the_call_writes_to_is_written() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += x.sum()
            x.mul_(2)
            return x + self.seen

    found, expected = Counting(), Counting()
    program = compiled(found)
    for _ in range(3):
        x = torch.randn(6)
        one, other = x.clone(), x.clone()
        torch.testing.assert_close(program(one), expected(other))
        assert torch.equal(one, other)
        torch.testing.assert_close(found.seen, expected.seen)


def test_an_op_belongs_to_the_users_line() -> None:
    seen = []
    session().on_compiled = (seen.append,)
    try:
        compiled(normed)(torch.randn(3, 8), torch.randn(8))
    finally:
        session().on_compiled = ()
    (compilation,) = seen
    first = normed.__code__.co_firstlineno
    assert {(node.source.file, node.source.line) for node in compilation.captured.nodes} == {(__file__, first + 1)}
    assert {node.source.function for node in compilation.captured.nodes} == {"normed"}


def test_options_are_those_of_jit() -> None:
    program = compiled(normed, options={"backend": "triton-interpret", "numerics": "fast"})
    x, w = torch.randn(4, 16), torch.randn(16)
    for _ in range(2):
        torch.testing.assert_close(program(x, w), normed(x, w), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keywords", [{"options": {"backned": "llvm"}}, {"mode": "max-autotune"}])
def test_what_it_does_not_know_it_refuses(keywords: dict[str, Any]) -> None:
    module = torch.fx.symbolic_trace(lambda x: x + 1)
    with pytest.raises(OptionError):
        dsjit.torch_backend(module, [torch.ones(2)], **keywords)
