"""Tensors and modules that were read: what decides is kind and sharing of memory, not which tensor it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch
from torch import nn

from tests.trace.cases import ONES, Box, Change, Layer, assert_noticed, changes_in, names_of, trace


def _tensor_shape() -> Change:
    box = Box(weight=torch.ones(3))
    return Change(lambda x: x * box.weight, lambda: setattr(box, "weight", torch.ones(1)), ".weight: was a Tensor")


def _tensor_dtype_in_place() -> Change:
    box = Box(weight=torch.ones(3))
    change = lambda: setattr(box.weight, "data", torch.ones(3, dtype=torch.float64))  # noqa: E731
    return Change(lambda x: x * box.weight, change, "float64")


def _tensor_strides_in_place() -> Change:
    box = Box(weight=torch.ones(2, 3))
    return Change(lambda x: x * box.weight, lambda: box.weight.as_strided_((2, 3), (1, 2)), "strides (1, 2)")


def _tensor_of_many_dimensions() -> Change:
    box = Box(weight=torch.ones(1, 2, 3, 1, 1, 1))
    return Change(lambda x: box.weight + 1, lambda: box.weight.transpose_(1, 2), "shape (1, 3, 2, 1, 1, 1)")


def _tensor_requires_grad() -> Change:
    box = Box(weight=torch.ones(3))
    return Change(lambda x: x * box.weight, lambda: box.weight.requires_grad_(), "requires_grad=True")


def _tensor_class() -> Change:
    box = Box(weight=torch.ones(3))
    change = lambda: setattr(box, "weight", nn.Parameter(torch.ones(3), requires_grad=False))  # noqa: E731
    return Change(lambda x: x * box.weight, change, "now a Parameter")


def _tensor_attribute() -> Change:
    box = Box(weight=torch.ones(3))
    box.weight.tag = 1
    return Change(lambda x: box.weight.tag, lambda: setattr(box.weight, "tag", 2), ".weight.tag: was 1, now 2")


def _tied_tensors_untied() -> Change:
    weight = torch.ones(3)
    box = Box(a=weight, b=weight)
    return Change(lambda x: x * box.a * box.b, lambda: setattr(box, "b", torch.ones(3)), "now another object")


def _module_training() -> Change:
    layer = nn.Dropout(0.0)
    return Change(layer, lambda: layer.eval(), "self.training: was True, now False")


def _module_parameter_none() -> Change:
    layer = nn.Linear(3, 3)
    return Change(layer, lambda: setattr(layer, "bias", None), "self.bias: was a Parameter")


def _module_hook() -> Change:
    layer = nn.Linear(3, 3)
    return Change(layer, lambda: layer.register_forward_hook(lambda *a: None), "self._forward_hooks")


def _module_pre_hook() -> Change:
    layer = nn.Linear(3, 3)
    return Change(layer, lambda: layer.register_forward_pre_hook(lambda *a: None), "self._forward_pre_hooks")


def _module_child() -> Change:
    layer = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    return Change(layer, lambda: layer.__setitem__(1, nn.Tanh()), "self[1]: was a ReLU, now a Tanh")


def _module_child_added() -> Change:
    layer = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    return Change(layer, lambda: layer.append(nn.Tanh()), "keys(self._modules)")


def _module_forward() -> Change:
    layer = nn.Sequential(nn.Linear(3, 3))
    change = lambda: setattr(layer[0], "forward", lambda x: x)  # noqa: E731
    return Change(layer, change, "self[0].forward: was absent")


def _module_forward_of_class() -> Change:
    cls = type("Mine", (nn.Linear,), {})
    layer = cls(3, 3)
    return Change(layer, lambda: setattr(cls, "forward", lambda self, x: x), "Mine.forward")


CHANGES = changes_in(globals())


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
@pytest.mark.parametrize("make", CHANGES, ids=names_of(CHANGES))
def test_a_changed_tensor_or_module_fails_the_check(make: Callable[[], Change], native: bool) -> None:
    assert_noticed(make(), native)


def test_a_replaced_parameter_of_the_same_kind_is_fetched_again() -> None:
    layer = nn.Linear(3, 3, bias=False)
    guard = trace(layer, ONES)
    assert guard.check((ONES,), {}) is not None
    layer.weight = nn.Parameter(torch.zeros(3, 3))
    for _ in range(3):
        inputs = guard.check((ONES,), {})
        assert inputs is not None and any(tensor is layer.weight for tensor in inputs)


def test_new_data_in_a_parameter_passes() -> None:
    layer = nn.Linear(3, 3, bias=False)
    guard = trace(layer, ONES)
    layer.weight.data = torch.zeros(3, 3)
    assert guard.check((ONES,), {}) is not None
    with torch.no_grad():
        layer.weight.add_(1)
    assert guard.check((ONES,), {}) is not None


def test_requires_grad_of_parameters_decides_nothing_without_grad_mode() -> None:
    layer = nn.Linear(3, 3)
    with torch.no_grad():
        guard = trace(layer, ONES)
        layer.requires_grad_(False)
        assert guard.check((ONES,), {}) is not None
    assert guard.check((ONES,), {}) is None


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
def test_equal_layers_share_one_guard(native: bool) -> None:
    layers = [Layer() for _ in range(4)]
    guard = trace(Layer.forward, layers[0], ONES, native=native)
    for _ in range(4):
        for layer in layers:
            inputs = guard.check((layer, ONES), {})
            assert inputs is not None
            assert {id(tensor) for tensor in inputs} == {id(ONES), *map(id, layer.parameters())}
    layers[2].scale = 0.25
    for number, layer in enumerate(layers):
        assert (guard.check((layer, ONES), {}) is None) == (number == 2)
    assert guard.why_not((layers[2], ONES), {}) == "args[0].scale: was 0.5, now 0.25"


def test_a_written_input_must_not_share_memory_with_another() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> None:
        x.add_(y)

    guard = trace(function, torch.ones(3), torch.ones(3), written=frozenset({0}))
    base = torch.ones(6)
    assert guard.check((torch.ones(3), torch.ones(3)), {}) is not None
    assert guard.check((base[:3], base[2:5]), {}) is None
    assert guard.why_not((base[:3], base[2:5]), {}) == "args[0], which is written, shares memory with args[1]"
    array = numpy.ones(3, dtype=numpy.float32)
    assert guard.check((torch.from_numpy(array), torch.from_numpy(array)), {}) is None
