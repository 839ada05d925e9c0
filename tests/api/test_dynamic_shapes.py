"""One program for many sizes: a size that changes costs one more compile, then none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertModel,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.api.jitted import Jitted

randn = torch.randn
WEIGHT = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) / 8


def follow(function: Callable[..., Any], *calls: tuple[Any, ...], **options: Any) -> Jitted:
    """Make every call twice, and compare each with eager: values, strides, generator state."""
    jitted = dsjit.jit(function, **options)
    with torch.no_grad():
        for args in calls:
            for _ in range(2):
                torch.manual_seed(7)
                expected = function(*args)
                drawn = torch.random.get_rng_state()
                torch.manual_seed(7)
                found = jitted(*args)
                assert torch.equal(torch.random.get_rng_state(), drawn)
                same(found, expected)
    behind = jitted_of(jitted)
    assert behind is not None
    assert behind.counters.calls_eager == 0
    return behind


def same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.stride() == expected.stride()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    elif isinstance(expected, tuple | list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert found == expected


def pointwise(x: torch.Tensor) -> torch.Tensor:
    return (x.sigmoid() * 2 + x).transpose(0, 1)


def rows(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1).mean(0)


def columns(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, 0).sum(1)


def perceptron(x: torch.Tensor) -> torch.Tensor:
    return torch.layer_norm((x @ WEIGHT).relu() @ WEIGHT + x, (64,))


def attention(x: torch.Tensor) -> torch.Tensor:
    batch, length, width = x.shape
    heads = (x @ WEIGHT).view(batch, length, 4, 16).transpose(1, 2)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    weights = (heads @ heads.transpose(-1, -2) / 4).masked_fill(~mask, float("-inf")).softmax(-1)
    return (weights @ heads).transpose(1, 2).reshape(batch, length, width)


def averages(x: torch.Tensor) -> torch.Tensor:
    return x.sum(1) / x.shape[1] + x.size(0)


def picks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.argmax(0), x.max(1).values


def views(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x, x[:, 1:], x.t(), x.exp()[:, : x.shape[1] - 1]


def draws(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.dropout(x, 0.5, training=True) + torch.rand(x.shape[0], 1)


def joined(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, torch.zeros(x.shape[0], 2), x * 2], 1).flip(1)


ONE = [(4,), (7,), (2,), (33,), (100,), (1000,)]
TWO = [(4, 9), (7, 12), (3, 3), (3, 50), (50, 3), (8, 8), (64, 33), (17, 130)]


@pytest.mark.parametrize("function", [pointwise, rows, columns, perceptron, picks])
def test_a_changing_batch_costs_one_more_compile_then_none(function: Callable[..., Any]) -> None:
    behind = follow(function, *[(randn(batch, 64),) for (batch,) in ONE])
    assert behind.counters.compiles == 2


@pytest.mark.parametrize("function", [pointwise, rows, columns, picks, averages, views, draws, joined])
def test_two_changing_sizes_cost_one_more_compile_then_none(function: Callable[..., Any]) -> None:
    behind = follow(function, *[(randn(*sizes),) for sizes in TWO])
    assert behind.counters.compiles == 2


def test_attention_over_a_changing_batch_and_length() -> None:
    behind = follow(attention, *[(randn(*sizes, 64),) for sizes in TWO])
    assert behind.counters.compiles == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64])
def test_dtypes(dtype: torch.dtype) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return (x * 3 - 1).abs().sum(0)

    behind = follow(function, *[((randn(size, 5) * 4).to(dtype),) for (size,) in ONE])
    assert behind.counters.compiles == 2


@pytest.mark.parametrize("function", [rows, columns, pointwise, joined])
def test_sizes_of_0_and_1_have_programs_of_their_own(function: Callable[..., Any]) -> None:
    calls = [(4, 9), (7, 12), (1, 5), (5, 1), (3, 4), (0, 4), (9, 9)]
    behind = follow(function, *[(randn(*sizes),) for sizes in calls])
    assert behind.counters.compiles == 2 + 3


def test_one_size_may_change_after_the_other() -> None:
    behind = follow(rows, *[(randn(*sizes),) for sizes in [(4, 9), (7, 9), (30, 9), (30, 11), (5, 100), (6, 3)]])
    assert behind.counters.compiles == 3


def test_an_input_in_another_memory_order_is_told_apart() -> None:
    behind = follow(rows, (randn(4, 9),), (randn(7, 12),), (randn(12, 7).t(),), (randn(13, 20).t(),), (randn(5, 5),))
    assert behind.counters.compiles <= 4


def test_a_window_on_a_larger_tensor_keeps_its_strides() -> None:
    whole = randn(64, 50)
    behind = follow(rows, *[(whole[:size, :20],) for (size,) in ONE[:4]])
    assert behind.counters.compiles == 2


def test_equal_sizes_are_one_size() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * y

    behind = follow(function, *[(randn(size, 3), randn(size, 3)) for (size,) in ONE])
    assert behind.counters.compiles == 2
    with pytest.raises(RuntimeError, match="must match"):
        dsjit_call = dsjit.jit(function)
        for size in (4, 5):
            dsjit_call(randn(size, 3), randn(size, 3))
        dsjit_call(randn(6, 3), randn(7, 3))


def test_sizes_with_a_constant_difference() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (torch.cat([x, x[:1]]) + y).exp()

    behind = follow(function, *[(randn(size, 3), randn(size + 1, 3)) for (size,) in ONE])
    assert behind.counters.compiles == 2


def test_a_comparison_of_sizes_is_a_condition() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] > 10 else x - x.shape[0]

    behind = follow(function, *[(randn(size, 3),) for size in (4, 7, 9, 20, 30, 10, 11, 2)])
    assert behind.counters.compiles == 3
    lines = [str(line) for tree in behind.trees for line in tree.guard.describe()]
    assert any("(not (s0 > 10))" in line for line in lines)
    assert any("s0 = args[0].shape[0] is open" in line for line in lines)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: sum(x[i] for i in range(x.shape[0])),
        lambda x: x * torch.tensor([float(x.shape[0])]),
        lambda x: x * (2 if isinstance(x.shape[0], int) else 3),
        lambda x: x * {4: 1, 5: 2, 7: 3}.get(x.shape[0], 0),
        lambda x: x * len(f"{x.shape[0]}"),
        lambda x: x * x.shape[0] ** 0.5,
    ],
    ids=["range", "tensor", "isinstance", "dict", "format", "root"],
)
def test_what_no_symbol_can_stand_for_stays_exact(function: Callable[..., Any]) -> None:
    behind = follow(function, *[(randn(size, 3),) for size in (4, 5, 7, 12)])
    assert behind.counters.compiles == 4


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x * 2, x.shape[0]),
        lambda x: [x.shape[0] * 2 + 1, x.sum(0)],
        lambda x: (x * len(x), len(x)),
    ],
    ids=["returned", "computed", "len"],
)
def test_sizes_are_handed_out(function: Callable[..., Any]) -> None:
    behind = follow(function, *[(randn(size, 3),) for size in (4, 5, 7, 12)])
    assert behind.counters.compiles == 2


def test_conditions_leave_small_sizes_open() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.sum() + y.sum() if x.shape == y.shape else x.sum() - y.sum()

    pairs = ((3, 3), (5, 5), (3, 4), (6, 2), (7, 7), (8, 9), (2, 5))
    behind = follow(function, *[(randn(a), randn(b)) for a, b in pairs])
    assert behind.counters.compiles == 3


def test_a_size_that_was_1_is_open_from_its_second_value_on() -> None:
    behind = follow(lambda x: x.exp() + 1, *[(randn(size, 3),) for size in (1, 2, 3, 7)])
    assert behind.counters.compiles == 2


def test_a_clamped_slice_serves_the_sizes_for_which_it_is_the_same() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x[:, :5].sigmoid() * 2

    table = randn(16, 3)

    def prefix(x: torch.Tensor) -> torch.Tensor:
        return x + table[: x.shape[0]]

    behind = follow(function, *[(randn(4, size),) for size in (9, 12, 100, 30, 3, 4)])
    assert behind.counters.compiles <= 4
    jitted = dsjit.jit(prefix)
    for size in (4, 7, 16, 2):
        same(jitted(table[:size].clone()), prefix(table[:size]))
    with pytest.raises(RuntimeError, match="must match"):
        jitted(randn(20, 3))


def test_a_window_that_is_longer_than_what_there_is_takes_all() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x[:, -40:].cumsum(1) + x[:, -1:]

    few = follow(function, *[(randn(size, 9),) for size in (3, 4, 5, 9)])
    assert few.counters.compiles == 2
    lengths = follow(function, *[(randn(2, size),) for size in (9, 12, 40, 30, 41, 39, 60, 50, 2, 70)])
    assert lengths.counters.compiles <= 4


def test_a_resampled_image_is_not_taken_for_a_simple_rule() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(x, scale_factor=0.99)

    follow(function, *[(randn(1, 1, size),) for size in (20, 30, 250, 99, 101)])


def test_dynamic_false_compiles_each_size() -> None:
    behind = follow(rows, *[(randn(size, 3),) for size in (4, 5, 6)], dynamic=False)
    assert behind.counters.compiles == 3


def test_dynamic_true_compiles_once() -> None:
    behind = follow(rows, *[(randn(*sizes),) for sizes in TWO], dynamic=True)
    assert behind.counters.compiles == 1


def test_dynamic_true_leaves_sizes_alone_that_parameters_fix() -> None:
    behind = follow(perceptron, *[(randn(size, 64),) for (size,) in ONE], dynamic=True)
    assert behind.counters.compiles == 1


def test_a_marked_size_is_dynamic_from_the_first_call_on() -> None:
    first = randn(4, 9)
    dsjit.mark_dynamic(first, 0)
    behind = follow(rows, (first,), (randn(5, 9),), (randn(70, 9),))
    assert behind.counters.compiles == 1


def test_a_size_marked_static_has_programs_of_its_own() -> None:
    calls = [(randn(size, 3),) for size in (4, 5, 6)]
    for (x,) in calls:
        dsjit.mark_static(x)
    assert follow(rows, *calls).counters.compiles == 3


def test_a_dimension_that_is_not_there_cannot_be_marked() -> None:
    for mark in (dsjit.mark_dynamic, dsjit.mark_static):
        with pytest.raises(IndexError):
            mark(randn(2, 3), 2)


def test_the_limit_says_why_sizes_stay_exact() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return sum(x[i] for i in range(x.shape[0]))  # type: ignore[return-value]

    jitted = dsjit.jit(function, recompile_limit=2)
    with pytest.warns(dsjit.DsjitWarning, match=r"shape \(4, 3\).*the size s0 is used as a number"):
        for size in (3, 4, 5):
            jitted(randn(size, 3))


def test_the_function_is_not_seen_to_run_more_often_than_it_is_called() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        warnings.warn("so it goes", UserWarning, stacklevel=1)
        return x * 2

    jitted = dsjit.jit(function)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for size in (3, 4, 5, 6):
            jitted(randn(size, 3))
    assert [str(each.message) for each in seen] == ["so it goes"] * 4


def test_what_a_call_does_to_python_objects_is_done_once() -> None:
    class Log:
        def __init__(self) -> None:
            self.calls, self.last, self.names = 0, None, {"first": True}

    def function(x: torch.Tensor, log: Log, seen: list[Any]) -> torch.Tensor:
        log.calls += 1
        log.last = x * 2
        log.names["again"] = not log.names.get("again", False)
        seen.append(x.sum(0))
        return x + 1

    mine, theirs = (Log(), []), (Log(), [])
    jitted = dsjit.jit(function)
    for size in (3, 4, 5, 6, 1, 9):
        x = randn(size, 3)
        same(jitted(x, *mine), function(x, *theirs))
        assert (mine[0].calls, mine[0].names) == (theirs[0].calls, theirs[0].names)
        same(mine[0].last, theirs[0].last)
        same(mine[1], theirs[1])


def test_what_is_written_stays_written_once() -> None:
    def function(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        total += x.sum(0)
        return x * 2

    total, expected = torch.zeros(3), torch.zeros(3)
    jitted = dsjit.jit(function)
    for size in (3, 4, 5, 6):
        x = randn(size, 3)
        same(jitted(x, total), function(x, expected))
        same(total, expected)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=3, max_size=5), st.integers(0, 4))
def test_any_sizes_in_any_order(sizes: list[tuple[int, int]], which: int) -> None:
    function = [pointwise, columns, averages, joined, rows][which]
    follow(function, *[(randn(*each),) for each in sizes], recompile_limit=100)


def test_an_encoder_over_any_batch_and_length() -> None:
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    model = BertModel(config).eval()

    def encode(ids: torch.Tensor) -> torch.Tensor:
        return model(ids).last_hidden_state  # type: ignore[no-any-return]

    behind = follow(encode, *[(torch.randint(0, 50, sizes),) for sizes in TWO])
    assert behind.counters.compiles == 2


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=300, bos_token_id=1, eos_token_id=2)
    )


def llama() -> Any:
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=64,
        max_position_embeddings=300,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_greedy_decode_of_256_tokens_with_a_growing_cache_compiles_at_most_3_times(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = make().eval()

    def step(token: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        return model(token, past_key_values=cache, use_cache=True).logits[:, -1]  # type: ignore[no-any-return]

    def decode(function: Callable[..., Any]) -> tuple[list[int], torch.Tensor]:
        cache, tokens = DynamicCache(), []
        token = torch.tensor([[1, 2, 3, 4, 5]])
        for _ in range(256):
            token = function(token, cache).argmax(-1, keepdim=True)
            tokens.append(int(token))
        return tokens, cache.layers[0].keys

    jitted = dsjit.jit(step)
    with torch.no_grad():
        (expected, cached), (found, kept) = decode(step), decode(jitted)
    assert found == expected
    same(kept, cached)
    behind = jitted_of(jitted)
    assert behind is not None
    assert behind.counters.compiles <= 3
    assert behind.counters.calls_eager == 0


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_greedy_decode_that_hands_its_cache_on_compiles_at_most_3_times(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = make().eval()

    def step(token: torch.Tensor, past: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
        cache = DynamicCache()
        for number, (keys, values) in enumerate(past):
            cache.update(keys, values, number)
        out = model(token, past_key_values=cache, use_cache=True)
        return out.logits[:, -1], [(layer.keys, layer.values) for layer in out.past_key_values.layers]

    def decode(function: Callable[..., Any]) -> list[int]:
        past: list[tuple[torch.Tensor, torch.Tensor]] = []
        token, tokens = torch.tensor([[1, 2, 3, 4, 5]]), []
        for _ in range(40):
            logits, past = function(token, past)
            token = logits.argmax(-1, keepdim=True)
            tokens.append(int(token))
        return tokens

    jitted = dsjit.jit(step)
    with torch.no_grad():
        assert decode(jitted) == decode(step)
    behind = jitted_of(jitted)
    assert behind is not None
    assert behind.counters.compiles <= 3
    assert behind.counters.calls_eager == 0
