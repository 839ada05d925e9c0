"""What existed before the call is the very same, or it is not; asked as often as Python looks at data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from dsjit.trace.observe import Observer

SCALE = 2.0


class Settings:
    factor = 3.0
    __slots__ = ("__dict__", "kept")


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.settings = Settings()
        self.settings.kept = [1, 2]
        self.table = numpy.ones(2)
        self.names = {"a": 1}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.names["a"], self.table[0], self.settings.factor, self.settings.kept[0]
        return x * self.weight * SCALE


CHANGES: dict[str, Callable[[Layer], Any]] = {
    "an attribute": lambda layer: setattr(layer, "new", 1),
    "a parameter": lambda layer: setattr(layer, "weight", torch.nn.Parameter(torch.ones(2))),
    "a dictionary": lambda layer: layer.names.update(a=5),
    "a list in a slot": lambda layer: layer.settings.kept.append(3),
    "a slot": lambda layer: setattr(layer.settings, "kept", [1, 2]),
    "an array": lambda layer: layer.table.fill(7),
    "a class": lambda layer: setattr(layer, "__class__", type("Other", (Layer,), {})),
    "a tensor's attribute": lambda layer: setattr(layer.weight, "note", 1),
    "requires_grad": lambda layer: layer.weight.requires_grad_(False),
    "all attributes": lambda layer: setattr(layer.settings, "__dict__", {"factor": 3.0}),
    "a global": lambda layer: globals().update(SCALE=5.0),
}


def answers(change: Callable[[Layer], Any]) -> tuple[bool, bool]:
    """Whether all is settled after a call, and when this is done after it."""
    layer, x = Layer(), torch.ones(2)
    observer = Observer(layer, (x,), {})
    with observer:
        layer(x)
        first = observer.is_settled()
        change(layer)
        second = observer.is_settled()
    return first, second


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_changed_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert answers(CHANGES[name]) == (True, False)


def test_an_equal_number_in_the_place_of_another_is_no_change() -> None:
    assert answers(lambda layer: layer.names.update(a=int("1"))) == (True, True)


def test_what_is_changed_back_is_no_change() -> None:
    def change(layer: Layer) -> None:
        kept = layer.settings.kept
        layer.settings.kept = []
        layer.settings.kept = kept

    assert answers(change) == (True, True)
