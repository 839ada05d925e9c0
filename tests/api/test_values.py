"""What goes in and comes out: structures, identity, aliasing, mutation, randomness, exceptions."""

from __future__ import annotations

import copy
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

import dsjit
from tests.api.checks import assert_same, call_compiled, check

Pair = namedtuple("Pair", ["left", "right"])
X = torch.linspace(-2, 2, 12).reshape(3, 4)


@dataclass
class Batch:
    x: torch.Tensor
    scale: float = 2.0


STRUCTURES: dict[str, Any] = {
    "tuple": lambda x: (x + 1, x * 2),
    "nested": lambda x: {"a": [x + 1, (x * 2, None)], "b": 3},
    "named tuple": lambda x: Pair(x + 1, x.sum()),
    "ordered dict": lambda x: OrderedDict(a=x + 1, b=x - 1),
    "numbers only": lambda x: (x.shape, x.dtype, x.dim()),
    "empty": lambda x: [],
    "model output": lambda x: BaseModelOutput(last_hidden_state=x.exp(), hidden_states=(x + 1, x + 2)),
    "namedtuple of torch": lambda x: x.max(-1),
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_results_of_any_structure_are_built_anew(kind: str) -> None:
    check(STRUCTURES[kind], X)
    jitted = dsjit.jit(STRUCTURES[kind])
    jitted(X)
    first, second = call_compiled(jitted, X), call_compiled(jitted, X)
    assert type(first) is type(STRUCTURES[kind](X))
    if kind not in ("numbers only",):
        assert first is not second


def test_arguments_of_any_structure_are_read() -> None:
    def f(first: Any, *rest: Any, flag: bool = False, **more: Any) -> torch.Tensor:
        total = first["a"][0] + first["b"].x * first["b"].scale
        for t in rest:
            total = total + t.left * t.right
        return total - more["c"] if flag else total

    batch = {"a": [X], "b": Batch(X + 1)}
    check(f, batch)
    check(f, batch, Pair(X, X * 3), flag=True, c=X * 2)


def test_a_dataclass_is_returned_with_its_class() -> None:
    jitted = dsjit.jit(lambda b: Batch(b.x * b.scale, b.scale + 1))
    jitted(Batch(X))
    out = call_compiled(jitted, Batch(X))
    assert type(out) is Batch and out.scale == 3.0
    assert torch.equal(out.x, X * 2)


def test_a_key_value_cache_is_written_and_returned() -> None:
    def step(cache: DynamicCache, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, DynamicCache]:
        keys, values = cache.update(k, v, 0)
        return keys.sum(-1) + values.sum(-1), cache

    k = torch.randn(1, 2, 1, 4)
    jitted = dsjit.jit(step)
    mine, theirs = DynamicCache(), DynamicCache()
    for _ in range(4):
        found, returned = jitted(mine, k, k + 1)
        expected, _ = step(theirs, k, k + 1)
        assert returned is mine
        assert_same(found, expected)
        assert_same(mine.layers[0].keys, theirs.layers[0].keys)
        assert mine.get_seq_length() == theirs.get_seq_length()


def test_an_argument_that_is_returned_is_the_same_object() -> None:
    jitted = dsjit.jit(lambda x, d: (x, d, x + 1))
    for _ in range(3):
        x, d = X.clone(), {"k": X.clone()}
        out = jitted(x, d)
        assert out[0] is x and out[1] is d


def test_a_view_of_an_argument_aliases_it() -> None:
    jitted = dsjit.jit(lambda x: (x.t(), x[1:, ::2], x.sum()))
    jitted(X.clone())
    x = X.clone()
    transposed, window, _ = call_compiled(jitted, x)
    x.fill_(7)
    assert torch.equal(transposed, torch.full((4, 3), 7.0))
    assert torch.equal(window, torch.full((2, 2), 7.0))


def test_results_that_share_memory_share_it_and_equal_results_do_not() -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x + 1
        return y, y.view(-1), y, x + 1

    jitted = dsjit.jit(f)
    jitted(X)
    whole, flat, again, twin = call_compiled(jitted, X)
    assert again is whole
    twin.fill_(9)
    whole.zero_()
    assert flat.sum() == 0 and twin.sum() == 9 * 12


def test_results_of_two_calls_do_not_share_memory() -> None:
    jitted = dsjit.jit(lambda x: x.exp())
    jitted(X)
    first = call_compiled(jitted, X)
    kept = first.clone()
    call_compiled(jitted, X + 1)
    assert torch.equal(first, kept)


def whole(x: torch.Tensor) -> torch.Tensor:
    return x.add_(1).mul_(2)


def view(x: torch.Tensor) -> torch.Tensor:
    x[1:, ::2] += 3
    x.t()[0].zero_()
    return x.sum(0)


def read_before_and_after(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    before = x * 2
    x.copy_(before.flip(0))
    return before, x + before


def own_temporary(x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    z = y.view(-1)
    z[::3] = 0
    y.masked_fill_(y > 2, -1)
    return y * z.view(3, 4)


def indexed(x: torch.Tensor) -> torch.Tensor:
    x[torch.tensor([0, 2])] = 5.0
    x[x > 1] = -1.0
    return x


def with_out(x: torch.Tensor) -> torch.Tensor:
    torch.add(x, 1, out=x)
    return x.cumsum(0)


MUTATIONS = [whole, view, read_before_and_after, own_temporary, indexed, with_out]


@pytest.mark.parametrize("function", MUTATIONS)
def test_writes_reach_the_callers_tensors(function: Any) -> None:
    check(function, X, exact=True)


@pytest.mark.parametrize("function", MUTATIONS)
def test_writes_reach_tensors_that_are_not_contiguous(function: Any) -> None:
    base = torch.arange(48.0).reshape(8, 6)
    jitted = dsjit.jit(function)
    for number in range(3):
        mine, theirs = base.clone(), base.clone()
        window, other = mine[1:7:2, 1:5], theirs[1:7:2, 1:5]
        found = call_compiled(jitted, window) if number else jitted(window)
        assert_same(found, function(other), exact=True)
        assert torch.equal(mine, theirs)


def test_running_statistics_are_updated_once_for_each_call() -> None:
    net = nn.BatchNorm2d(3).train()
    twin = copy.deepcopy(net)
    jitted = dsjit.jit(net)
    with torch.no_grad():
        for number in range(4):
            x = torch.randn(2, 3, 5, 5)
            expected = twin(x)
            found = call_compiled(jitted, x) if number else jitted(x)
            assert_same(found, expected)
            assert_same(dict(net.named_buffers()), dict(twin.named_buffers()))


RANDOM: dict[str, Any] = {
    "dropout": lambda x: nn.functional.dropout(x, 0.4, True) * 2,
    "rand and randn": lambda x: torch.rand_like(x) + torch.randn(3, 4) * torch.rand(4),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()) - x,
    "in place": lambda x: x.clone().normal_().exp(),
    "permutation": lambda x: x[torch.randperm(3)],
    "integers": lambda x: torch.randint(0, 10, (5,)) + 1,
    "reseeded": lambda x: (torch.manual_seed(5), torch.rand(3) + x[:, 0])[1],
}


@pytest.mark.parametrize("kind", RANDOM)
def test_the_random_stream_is_eagers(kind: str) -> None:
    check(RANDOM[kind], X, calls=3)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (lambda x: x @ x, (X,)),
        (lambda x, n: x.view(n), (X, 5)),
        (lambda x: x.sum(7), (X,)),
        (lambda x: {}["key"], (X,)),
        (lambda x: nn.functional.embedding(x, torch.ones(3, 2)), (torch.tensor([1, 9]),)),
        (lambda x, y: x + y, (X,)),
    ],
    ids=["shapes", "view", "dimension", "user's own", "index out of range", "arguments"],
)
def test_errors_are_eagers(function: Any, args: tuple[Any, ...]) -> None:
    with pytest.raises(Exception) as expected:
        function(*args)
    jitted = dsjit.jit(function)
    for _ in range(3):
        with pytest.raises(type(expected.value)) as found:
            jitted(*args)
        assert type(found.value) is type(expected.value)
        assert str(found.value) == str(expected.value)


def test_an_error_that_depends_on_data_is_raised_by_the_compiled_call() -> None:
    jitted = dsjit.jit(lambda i, w: nn.functional.embedding(i, w) + 1)
    w = torch.ones(3, 2)
    jitted(torch.tensor([0, 2]), w)
    call_compiled(jitted, torch.tensor([1, 1]), w)
    with pytest.raises(IndexError, match="index out of range"):
        jitted(torch.tensor([1, 9]), w)
    assert_same(call_compiled(jitted, torch.tensor([1, 1]), w), torch.full((2, 2), 2.0))
