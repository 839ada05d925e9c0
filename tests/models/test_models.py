"""Small models of real architectures: compiled calls equal eager, in float32 and bfloat16, at several shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import dsjit
from dsjit.api.entry import jitted_of
from tests.api.checks import call_compiled

SMALL: dict[str, Any] = {"vocab_size": 101, "attn_implementation": "sdpa"}


def bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, **SMALL
    )
    return transformers.BertModel(config)


def gpt2() -> nn.Module:
    return transformers.GPT2Model(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **SMALL))


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, **SMALL
    )
    return transformers.LlamaForCausalLM(config)


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first_norm(self.first(x)).relu()
        return (x + self.second_norm(self.second(y))).relu()


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=2, padding=3)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(ResidualBlock(8), ResidualBlock(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.pool(self.stem(x))).mean((-2, -1)))


MODELS = [bert, gpt2, llama]
TOLERANCES = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 4e-2}}
"""float32: a few hundred roundings; bfloat16: a few units in the last place of values near 1."""


def built(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return make().eval().to(dtype)


def tensors(output: Any) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else [t for t in output.values() if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("make", MODELS)
def test_a_transformer_equals_eager(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    eager, compiled = built(make, dtype), dsjit.jit(built(make, dtype))
    with torch.no_grad():
        for shape in ((2, 16), (1, 7)):
            tokens = torch.randint(0, 101, shape)
            mask = torch.ones(shape, dtype=torch.int64)
            compiled(input_ids=tokens, attention_mask=mask, use_cache=False)
            found = call_compiled(compiled, input_ids=tokens, attention_mask=mask, use_cache=False)
            expected = eager(input_ids=tokens, attention_mask=mask, use_cache=False)
            assert type(found) is type(expected)
            assert list(found) == list(expected)
            for a, b in zip(tensors(found), tensors(expected), strict=True):
                torch.testing.assert_close(a, b, **TOLERANCES[dtype])
    counters = jitted_of(compiled).counters
    assert counters.ops_in_kernels > counters.ops_in_library > 0


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_key_value_cache_is_filled_as_in_eager(make: Callable[[], nn.Module]) -> None:
    eager, compiled = built(make, torch.float32), dsjit.jit(built(make, torch.float32))
    tokens = torch.randint(0, 101, (2, 8))
    with torch.no_grad():
        compiled(input_ids=tokens, use_cache=True)
        found = call_compiled(compiled, input_ids=tokens, use_cache=True).past_key_values
        expected = eager(input_ids=tokens, use_cache=True).past_key_values
    assert type(found) is type(expected)
    assert found.get_seq_length() == expected.get_seq_length() == 8
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close(mine.keys, theirs.keys, **TOLERANCES[torch.float32])
        torch.testing.assert_close(mine.values, theirs.values, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_residual_network_equals_eager(dtype: torch.dtype) -> None:
    eager, compiled = built(ResidualNet, dtype), dsjit.jit(built(ResidualNet, dtype))
    with torch.no_grad():
        for size in (32, 20):
            x = torch.randn(2, 3, size, size, dtype=dtype)
            compiled(x)
            torch.testing.assert_close(call_compiled(compiled, x), eager(x), **TOLERANCES[dtype])


def test_compiled_weights_may_be_updated_between_calls() -> None:
    eager, compiled = built(bert, torch.float32), dsjit.jit(built(bert, torch.float32))
    tokens = torch.randint(0, 101, (1, 5))
    with torch.no_grad():
        compiled(tokens)
        for model in (eager, compiled):
            for parameter in model.parameters():
                parameter.mul_(1.5)
        found, expected = call_compiled(compiled, tokens), eager(tokens)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, **TOLERANCES[torch.float32])
