"""What a guard returns, forgets, keeps alive and says."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dsjit.trace.observe import Observer
from tests.trace.cases import ONES, Box, Layer, helper, trace


def test_inputs_come_in_the_order_asked_for() -> None:
    box = Box(weight=torch.ones(3))
    observer = Observer(lambda x, y: x * box.weight + y, (ONES, ONES * 2), {})
    with observer:
        observer._function(ONES, observer._args[1])
    x, y, weight = observer._args[0], observer._args[1], box.weight
    paths = [observer.path_of(tensor) for tensor in (y, weight, x)]
    guard = observer.build_guard([path for path in paths if path is not None], frozenset())
    new = torch.zeros(2, 3), torch.full((2, 3), 5.0)
    for _ in range(3):
        inputs = guard.check(new, {})
        assert inputs is not None
        assert [id(tensor) for tensor in inputs] == [id(new[1]), id(weight), id(new[0])]


def test_an_equal_constant_passes_and_is_bound_anew() -> None:
    box = Box(factor=1e300)
    guard = trace(lambda x: x * box.factor, ONES)
    for _ in range(4):
        box.factor = float("1e300")
        assert guard.check((ONES,), {}) is not None
    for step in range(100):  # addresses of freed floats are used again
        box.factor = float(step)
        assert guard.check((ONES,), {}) is None


def test_a_function_made_anew_at_an_old_address_is_looked_at_anew() -> None:
    def make(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: x * factor

    box = Box(f=make(2.0))
    guard = trace(lambda x: box.f(x), ONES)
    for step in range(100):
        assert guard.check((ONES,), {}) is not None
        box.f = make(step + 10.0)
        assert guard.check((ONES,), {}) is None
        box.f = make(2.0)


def test_a_list_made_anew_at_an_old_address_is_looked_at_anew() -> None:
    box = Box(items=[[1.5], {"k": [2.5]}])
    guard = trace(lambda x: x * box.items[0][0], ONES)
    for step in range(100):
        assert guard.check((ONES,), {}) is not None
        box.items = [[1.5], {"k": [step + 10.0]}]
        assert guard.check((ONES,), {}) is None
        box.items = [[1.5], {"k": [2.5]}]


def test_what_was_not_read_may_change() -> None:
    box = Box(factor=2.0, unused=1)
    guard = trace(lambda x: x * box.factor, ONES)
    box.unused = 2
    box.more = 3
    assert guard.check((ONES,), {}) is not None


def test_objects_born_during_the_trace_are_not_guarded() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        box = Box(factor=2.0)
        box.items = [1]
        box.items.append(2)
        return x * box.factor

    guard = trace(function, ONES)
    assert not any("items" in line.path for line in guard.describe())


@pytest.mark.parametrize(
    "state",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        lambda: torch.device("meta"),
    ],
    ids=["no_grad", "inference_mode", "autocast", "sdpa_kernel", "function mode"],
)
def test_another_torch_state_fails_the_check(state: Callable[[], Any]) -> None:
    guard = trace(lambda x: x + 1, ONES)
    with state():
        assert guard.check((ONES,), {}) is None
        assert guard.why_not((ONES,), {}) is not None
    assert guard.check((ONES,), {}) is not None


@pytest.mark.parametrize("name", ["flash", "mem_efficient", "cudnn", "math"])
def test_each_backend_of_attention_is_guarded(name: str) -> None:
    guard = trace(lambda x: x + 1, ONES)
    enable = getattr(torch.backends.cuda, f"enable_{name}_sdp")
    is_enabled = getattr(torch.backends.cuda, f"{name}_sdp_enabled")
    before = is_enabled()
    enable(not before)
    try:
        assert guard.check((ONES,), {}) is None
        assert "attention enabled" in str(guard.why_not((ONES,), {}))
    finally:
        enable(before)


def test_the_default_dtype_is_guarded() -> None:
    guard = trace(lambda x: x + 1, ONES)
    torch.set_default_dtype(torch.float64)
    try:
        assert guard.check((ONES,), {}) is None
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_guard_keeps_no_model_alive() -> None:
    layers = [Layer() for _ in range(2)]
    guard = trace(Layer.forward, layers[0], ONES)
    for _ in range(3):
        for layer in layers:
            assert guard.check((layer, ONES), {}) is not None
    dead = weakref.ref(layers.pop())
    del layer
    gc.collect()
    assert dead() is None


def test_tracing_another_function_leaves_the_check_valid() -> None:
    layer = Layer()
    guard = trace(layer, ONES)
    for _ in range(3):
        trace(Layer(), ONES)
        assert guard.check((ONES,), {}) is not None


def test_a_bound_method_a_partial_and_a_callable_object_are_functions_too() -> None:
    box = Box(factor=2.0)
    box_type = type("Callable", (Box,), {"__call__": lambda self, x: x * self.factor})
    called = box_type(factor=2.0)
    guards = [
        (trace(Layer().forward, ONES), (ONES,)),
        (trace(functools.partial(helper, factor=3.0), ONES), (ONES,)),
        (trace(called, ONES), (ONES,)),
        (trace(box.scale, ONES), (ONES,)),
    ]
    for guard, args in guards:
        assert guard.check(args, {}) is not None
    called.factor = 3.0
    assert guards[2][0].check((ONES,), {}) is None


def test_describe_tells_what_must_hold() -> None:
    box = Box(factor=2.0)
    lines = [str(line) for line in trace(lambda x, b: x * b.factor, ONES, box).describe()]
    assert "args[1].factor is 2.0" in lines
    assert "args[1] is a Box" in lines
    assert any(line.startswith("args[0] is a Tensor of float32, shape (2, 3)") for line in lines)


def test_the_fast_path_is_native() -> None:
    layer = Layer()
    guard = trace(layer, ONES)
    guard.check((ONES,), {})
    assert len(guard._tables) == 1
    assert guard._residual == {}
