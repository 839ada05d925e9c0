"""`dsjit.explain`: guards with the lines that read them, branches, effects, recompiles and eager calls."""

from __future__ import annotations

import json
import logging
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import dsjit
from dsjit.api.explain import Explanation
from dsjit.api.guard_summary import merge_alike, summarize_guards
from dsjit.trace.guards.guard import GuardLine

X = torch.ones(2, 4)
HISTORY: list[Any] = []
LOGGER = logging.getLogger("explained")
LOGGER.propagate = False
LOGGER.addHandler(logging.NullHandler())


class Config:
    def __init__(self) -> None:
        self.scale = 2.0


CONFIG = Config()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = 2.0
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return (x * self.factor).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def explain(function: Any, *args: Any) -> Explanation:
    explanation: Explanation = dsjit.explain(function)(*args)
    return explanation


def line_of(function: Any, offset: int) -> str:
    return f"{__file__}:{function.__code__.co_firstlineno + offset}"


def test_a_guard_names_its_path_and_the_line_that_read_it() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        return y * CONFIG.scale

    guards = {guard.path: guard for guard in explain(f, X).guards}
    scale = guards[f"globals({__name__})['CONFIG'].scale"]
    assert scale.condition == "is 2.0"
    assert str(scale.source) == line_of(f, 2)
    assert str(guards[f"globals({__name__})['CONFIG']"].source) == line_of(f, 2)
    assert "shape (2, 4)" in guards["args[0]"].condition
    assert guards["args[0]"].source.line == 0, "arguments are not read by a line"


def test_effects_name_the_lines_that_did_them() -> None:
    def f(x: torch.Tensor, layer: Layer, table: dict[str, Any]) -> torch.Tensor:
        layer.last = x + 1
        HISTORY.append(1)
        table["x"] = x
        print("told")
        LOGGER.error("told")
        warnings.warn("told", stacklevel=1)
        return x * 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        effects = [(effect.text, str(effect.source)) for effect in explain(f, X, Layer(), {}).effects]
    assert ("prints", line_of(f, 4)) in effects
    assert ("logs to explained (ERROR)", line_of(f, 5)) in effects
    assert ("warns (UserWarning)", line_of(f, 6)) in effects
    assert ("writes attribute 'last' of args[1]", line_of(f, 1)) in effects
    assert (f"changes the contents of globals({__name__})['HISTORY']", line_of(f, 2)) in effects
    assert any("writes item 'x' of args[2]" in text for text, _ in effects)


def test_branches_recompiles_and_eager_calls_are_told_with_their_causes() -> None:
    def f(x: torch.Tensor, n: int) -> torch.Tensor:
        return x * n if x.sum() > 0 else x - n

    jitted = dsjit.jit(f, recompile_limit=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jitted(X, 2)
        jitted(-X, 2)
        jitted(X, 3)
        explanation = explain(jitted, X, 2)
    assert [line.split(": ", 1)[1] for line in explanation.branches] == ["the truth of a tensor: True, False"]
    [recompile] = explanation.recompiles
    assert recompile.text == f"the truth of a tensor is False for the first time (at {line_of(f, 1)})"
    assert "torch.where" in recompile.advice
    assert explanation.eager_calls == {"the limit of 1 programs is reached (option recompile_limit)": 1}
    text = str(explanation)
    for heading in ("branches on what tensors hold:", "traced again, because:", "eager calls:"):
        assert heading in text


def test_an_eager_call_is_told_with_its_cause() -> None:
    jitted = dsjit.jit(lambda x: x.numpy().sum())
    with pytest.warns(dsjit.DsjitWarning):
        explanation = explain(jitted, X)
    [reason] = explanation.eager_reasons
    assert "numpy" in reason and __file__ in reason
    [(cause, count)] = explanation.eager_calls.items()
    assert "numpy" in cause and count == 1
    assert "runs eagerly" in str(explanation) and "1x:" in str(explanation)


def test_equal_layers_are_told_once() -> None:
    net = dsjit.jit(Net().eval())
    explanation = explain(net, X)
    assert len(explanation.guards) > 300
    lines = list(summarize_guards(explanation.guards))
    assert len(lines) < 60
    assert any(".factor is 2.0 (12 alike)  # test_explain.py:" in line for line in lines)
    assert merge_alike([effect.text for effect in explanation.effects]) == [
        "writes attribute 'calls' of self.layers[*], 12 alike"
    ]
    assert len(str(explanation).splitlines()) < 150


def test_a_few_guards_that_differ_in_their_index_are_told_one_by_one() -> None:
    lines = [GuardLine(f"args[{number}]", "is 1", owner="args") for number in range(2)]
    assert list(summarize_guards(lines)) == ["args", "  [0] is 1", "  [1] is 1"]
    lines.append(GuardLine("args[2]", "is 1", owner="args"))
    assert list(summarize_guards(lines)) == ["args", "  [*] is 1 (3 alike)"]


def test_an_explanation_is_plain_data_for_json() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        HISTORY.append(x)
        return x * CONFIG.scale

    data = json.loads(json.dumps(explain(f, X).to_dict()))
    assert data["ops_captured"] == 1
    guard = next(guard for guard in data["guards"] if guard["condition"] == "is 2.0")
    assert guard["path"] == f"globals({__name__})['CONFIG'].scale" and guard["source"] == line_of(f, 2)
    assert data["effects"][0]["source"] == line_of(f, 1)
    assert data["kernels"][0]["sources"] == [line_of(f, 2)]
