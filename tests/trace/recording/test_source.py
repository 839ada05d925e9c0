"""Which line and which module an op of a traced call belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.ir.graph import Source


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.scale(x)).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.shared = self.blocks[0].scale

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.shared(x).exp()


X = torch.randn(2, 4)


def scopes(function: Callable[..., Any], op: str) -> list[str]:
    with torch.no_grad():
        function(X)
    (compilation,) = jitted_of(function).compilations
    return [node.source.scope for node in compilation.captured.nodes if op in str(node.op)]


def test_an_op_belongs_to_the_innermost_module() -> None:
    net = dsjit.jit(Net())
    assert scopes(net, "addmm") == ["blocks.0.linear", "blocks.1.linear"]
    assert scopes(net, "relu") == ["blocks.0", "blocks.1"]
    assert scopes(net, "exp") == [""]


def test_a_module_that_is_met_twice_has_its_first_path() -> None:
    assert scopes(dsjit.jit(Net()), "mul") == ["blocks.0.scale", "blocks.1.scale", "blocks.0.scale"]


def test_paths_begin_at_the_jitted_module() -> None:
    inner = dsjit.jit(Block())
    outer = nn.Sequential(inner)
    with torch.no_grad():
        outer(X)
    assert scopes(inner, "relu") == [""]


def test_a_model_that_a_function_calls_is_told_by_its_class() -> None:
    net = Net()
    assert scopes(dsjit.jit(lambda x: net(x) + 1), "add.Tensor") == [""]
    assert scopes(dsjit.jit(lambda x: net(x) + 1), "relu") == ["Net.blocks.0", "Net.blocks.1"]


def test_the_backward_belongs_to_the_modules_of_the_forward() -> None:
    net = dsjit.jit(Net())
    net(X).sum().backward()
    backward = jitted_of(net).compilations[-1]
    products = [node.source.scope for node in backward.captured.nodes if "mm" in str(node.op)]
    assert set(products) == {"blocks.0.linear", "blocks.1.linear"}


def test_lines_are_the_same_in_any_module() -> None:
    one, other = Source("file.py", 3, "f", "layers.0"), Source("file.py", 3, "f", "layers.1")
    assert one == other and len({one, other}) == 1
