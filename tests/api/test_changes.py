"""A program is never stale: whatever the code read is looked at again before each compiled call."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import dsjit
from tests.api.checks import assert_same, call_compiled, counters_of

X = torch.linspace(-2, 2, 12).reshape(3, 4)

SCALE = 2.0
HELPER = torch.sin


def other_helper(x: torch.Tensor) -> torch.Tensor:
    return x.cos() + 1


ARGUMENTS: dict[str, tuple[Any, Any]] = {
    "shape": (X, torch.randn(2, 5)),
    "rank": (X, torch.randn(2, 3, 4)),
    "dtype": (X, X.double()),
    "integers": (X, X.long()),
    "strides": (X, torch.randn(4, 3).t()),
    "offset into other memory": (X, torch.randn(20)[5:17].view(3, 4)),
    "broadcast strides": (X, torch.randn(1, 4).expand(3, 4)),
    "empty": (X, torch.randn(0, 4)),
    "zero dimensions": (X, torch.tensor(1.5)),
    "a number": (X, 2.5),
}


@pytest.mark.parametrize("change", ARGUMENTS)
def test_another_kind_of_argument_gets_its_own_program(change: str) -> None:
    def f(x: Any) -> torch.Tensor:
        return x * 2 + torch.ones(())

    jitted = dsjit.jit(f)
    first, second = ARGUMENTS[change]
    jitted(first)
    assert_same(jitted(second), f(second))
    assert_same(call_compiled(jitted, second), f(second))
    assert_same(call_compiled(jitted, first), f(first))


def test_one_program_serves_all_memory_of_the_same_layout() -> None:
    jitted = dsjit.jit(lambda x: x.exp())
    jitted(X)
    base = torch.randn(40)
    for offset in range(5):
        window = base[offset : offset + 12].view(3, 4)
        torch.testing.assert_close(call_compiled(jitted, window), window.exp())


def closure_case() -> tuple[Callable[..., Any], Callable[[], None]]:
    scale = 2.0

    def f(x: torch.Tensor) -> torch.Tensor:
        return x * scale

    def change() -> None:
        nonlocal scale
        scale = 3.0

    return f, change


def attribute_case() -> tuple[Callable[..., Any], Callable[[], None]]:
    config = SimpleNamespace(deep=SimpleNamespace(scale=2.0))
    return (lambda x: x * config.deep.scale), (lambda: setattr(config.deep, "scale", 3.0))


def container_case() -> tuple[Callable[..., Any], Callable[[], None]]:
    table: dict[str, list[float]] = {"scales": [2.0]}
    return (lambda x: x * sum(table["scales"])), (lambda: table["scales"].append(4.0))


def default_case() -> tuple[Callable[..., Any], Callable[[], None]]:
    def f(x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        return x * scale

    return f, lambda: setattr(f, "__defaults__", (3.0,))


def code_case() -> tuple[Callable[..., Any], Callable[[], None]]:
    def helper(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    return (lambda x: helper(x) * 2), (lambda: setattr(helper, "__code__", other_helper.__code__))


def tensor_case() -> tuple[Callable[..., Any], Callable[[], None]]:
    holder = SimpleNamespace(w=torch.ones(4))
    return (lambda x: x * holder.w), (lambda: setattr(holder, "w", torch.full((4,), 3.0)))


def content_case() -> tuple[Callable[..., Any], Callable[[], Any]]:
    w = torch.ones(4)
    return (lambda x: x * w), (lambda: w.copy_(torch.full((4,), 3.0)))


def branch_case() -> tuple[Callable[..., Any], Callable[[], None]]:
    switch: set[str] = set()
    return (lambda x: x.sin() if "on" in switch else x.cos()), (lambda: switch.add("on"))


Case = Callable[[], tuple[Callable[..., Any], Callable[[], Any]]]

CASES = [closure_case, attribute_case, container_case, default_case, code_case, tensor_case, content_case, branch_case]


@pytest.mark.parametrize("case", CASES)
def test_a_change_of_what_the_code_reads_is_seen(case: Case) -> None:
    f, change = case()
    jitted = dsjit.jit(f)
    before = f(X)
    jitted(X)
    assert_same(call_compiled(jitted, X), before)
    change()
    after = f(X)
    assert not torch.equal(before, after)
    assert_same(jitted(X), after)
    assert_same(call_compiled(jitted, X), after)


def test_globals_and_the_functions_they_name_are_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return HELPER(x) * SCALE

    jitted = dsjit.jit(f)
    jitted(X)
    assert_same(call_compiled(jitted, X), X.sin() * 2)
    monkeypatch.setitem(globals(), "SCALE", 5.0)
    assert_same(jitted(X), X.sin() * 5)
    monkeypatch.setitem(globals(), "HELPER", other_helper)
    assert_same(jitted(X), (X.cos() + 1) * 5)
    monkeypatch.setattr(torch, "cos", torch.tanh)
    assert_same(jitted(X), (X.cos() + 1) * 5)


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.ReLU()).eval()


def replace_parameter(net: nn.Sequential) -> None:
    net[0].weight = nn.Parameter(torch.ones(4, 4))


def update_parameter(net: nn.Sequential) -> None:
    net[0].weight.mul_(3)


def replace_data(net: nn.Sequential) -> None:
    net[0].weight.data = torch.ones(4, 4)


def replace_child(net: nn.Sequential) -> None:
    net[3] = nn.Sigmoid()


def add_child(net: nn.Sequential) -> None:
    net.append(nn.Tanh())


def train(net: nn.Sequential) -> None:
    net.train()


def patch_forward(net: nn.Sequential) -> None:
    net[3].forward = lambda x: x * 7  # type: ignore[method-assign]


def patch_class(net: nn.Sequential) -> None:
    net[3].__class__ = nn.Tanh


def widen(net: nn.Sequential) -> None:
    net.double()


def drop_bias(net: nn.Sequential) -> None:
    net[0].bias = None


def load_state(net: nn.Sequential) -> None:
    net.load_state_dict({name: tensor + 1 for name, tensor in net.state_dict().items()})


def change_eps(net: nn.Sequential) -> None:
    net[2].eps = 10.0


MODULE_CHANGES = [
    replace_parameter, update_parameter, replace_data, replace_child, add_child, train, patch_forward, patch_class,
    widen, drop_bias, load_state, change_eps,
]  # fmt: skip


@pytest.mark.parametrize("change", MODULE_CHANGES)
def test_a_changed_module_gives_its_new_answer(change: Callable[[nn.Sequential], None]) -> None:
    net, twin = dsjit.jit(make_net()), make_net()
    with torch.no_grad():
        net(X)
        before = call_compiled(net, X)
        change(net)
        change(twin)
        x = X.to(twin[0].weight.dtype)
        for number in range(3):
            torch.manual_seed(number)
            expected = twin(x)
            torch.manual_seed(number)
            found = net(x)
            assert_same(found, expected)
            assert found.dtype != before.dtype or not torch.equal(found, before)


def test_a_forward_patched_on_the_class_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    net = dsjit.jit(make_net())
    with torch.no_grad():
        net(X)
        call_compiled(net, X)
        monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x * 100)
        assert_same(net(X), make_net()(X))


def by_item(x: torch.Tensor) -> torch.Tensor:
    return x * x.max().item()


def by_bool(x: torch.Tensor) -> torch.Tensor:
    return x.sin() if x.sum() > 0 else x.cos()


def by_list(x: torch.Tensor) -> torch.Tensor:
    return x + len([v for v in x[0].tolist() if v > 0])


def by_int(x: torch.Tensor) -> torch.Tensor:
    return x[: int(x.abs().max())]


def by_nonzero(x: torch.Tensor) -> torch.Tensor:
    return x[x > 0] * 2


def by_equal(x: torch.Tensor) -> torch.Tensor:
    return x + 1 if torch.equal(x, X) else x - 1


@pytest.mark.parametrize("function", [by_item, by_bool, by_list, by_int, by_nonzero, by_equal])
def test_values_that_python_saw_are_looked_at_again(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    jitted = dsjit.jit(function)
    inputs = [X, X - 1.5, X + 0.7, -X.abs(), X]
    for x in inputs * 2:
        assert_same(jitted(x.clone()), function(x))


def test_a_value_that_is_the_same_again_is_answered_by_the_program() -> None:
    jitted = dsjit.jit(by_bool)
    jitted(X + 1)
    assert_same(call_compiled(jitted, X + 2), (X + 2).sin())


def test_a_failed_look_leaves_the_arguments_untouched() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        x += 1
        return x * 2 if bool(x.sum() > 0) else x * 3

    jitted = dsjit.jit(f)
    for number in range(6):
        start = 5.0 if number % 2 else -5.0
        mine, theirs = torch.full((3,), start), torch.full((3,), start)
        assert_same(jitted(mine), f(theirs))
        assert_same(mine, theirs)


def test_modes_are_part_of_what_was_read() -> None:
    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    jitted = dsjit.jit(f)
    w = torch.randn(4, 4, requires_grad=True)
    with torch.no_grad():
        jitted(X, w)
        assert not call_compiled(jitted, X, w).requires_grad
    out = jitted(X, w)
    assert out.requires_grad
    out.sum().backward()
    assert w.grad is not None
    with torch.inference_mode():
        assert jitted(X, w).is_inference()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert jitted(X, w).dtype is torch.bfloat16
    with torch.no_grad():
        assert call_compiled(jitted, X, w).dtype is torch.float32
    previous = torch.get_default_dtype()
    make = dsjit.jit(lambda x: x + torch.ones(4))
    make(X)
    try:
        torch.set_default_dtype(torch.float64)
        assert make(X).dtype is torch.float64
    finally:
        torch.set_default_dtype(previous)


def test_arguments_that_come_to_share_memory_are_told_apart() -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x * y

    jitted = dsjit.jit(f)
    jitted(X.clone(), X.clone())
    call_compiled(jitted, X.clone(), X.clone())
    for offset in (0, 2):
        mine, theirs = torch.arange(16.0), torch.arange(16.0)
        found = jitted(mine[:12], mine[offset : offset + 12])
        assert_same(found, f(theirs[:12], theirs[offset : offset + 12]))
        assert_same(mine, theirs)


def test_the_counters_tell_what_happened() -> None:
    dsjit.reset_stats()
    jitted = dsjit.jit(by_bool)
    for x in (X + 1, X + 1, X - 1, X - 1, X + 1):
        jitted(x)
    counters = counters_of(jitted)
    assert (counters.traces, counters.compiles, counters.calls_traced) == (2, 3, 2)
    assert (counters.calls_compiled, counters.calls_eager, counters.cache_hits) == (3, 0, 3)
    total = dsjit.stats()
    assert total.calls_compiled == 3
    assert list(total.by_object.values()) == [counters]
    assert "3 compiled, 2 traced and 0 eager calls" in str(total)
    dsjit.reset_stats()
    assert dsjit.stats().by_object == {}


def test_equal_kernels_are_generated_once() -> None:
    first, second = dsjit.jit(lambda x: x.exp() * 31 + 3), dsjit.jit(lambda x: x.exp() * 31 + 3)
    first(X)
    second(X)
    assert counters_of(first).kernels_generated + counters_of(first).kernels_reused == 1
    assert (counters_of(second).kernels_generated, counters_of(second).kernels_reused) == (0, 1)
