"""Ways by which the content of a tensor reaches Python without an ATen call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dsjit.trace.looks.outcome import OutcomeKind
from dsjit.trace.recording.escape import EscapeWatch


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda t: t.numpy(), "numpy"),
        (lambda t: np.asarray(t), "numpy"),
        (lambda t: t.data_ptr(), "address"),
        (lambda t: t.untyped_storage(), "storage"),
        (lambda t: t.requires_grad_(), "requires_grad"),
    ],
)
def test_each_way_out_is_noticed(use: Callable[[torch.Tensor], Any], reason: str) -> None:
    reasons: list[str] = []
    with EscapeWatch(reasons.append, lambda kind, tensor: None):
        use(torch.zeros(2))
    assert any(reason in text for text in reasons)


@pytest.mark.parametrize("use", [lambda t: t.grad, lambda t: setattr(t, "grad", torch.ones(2))])
def test_gradients_that_are_read_or_written_are_told(use: Callable[[torch.Tensor], Any]) -> None:
    told: list[torch.Tensor] = []
    watch = EscapeWatch(lambda reason: None, lambda kind, tensor: None)
    watch.on_grad = told.append
    tensor = torch.zeros(2)
    with watch:
        use(tensor)
    assert [each is tensor for each in told] == [True]


def test_data_that_is_replaced_is_told_before_and_after() -> None:
    told: list[bool] = []
    watch = EscapeWatch(lambda reason: None, lambda kind, tensor: None)
    watch.on_data = lambda tensor, data, done: told.append(done)
    tensor, data = torch.zeros(2), torch.ones(2)
    with watch:
        tensor.data = data
    assert told == [False, True]
    assert tensor.data_ptr() == data.data_ptr()


def test_ordinary_ops_are_no_escape() -> None:
    reasons: list[str] = []
    with EscapeWatch(reasons.append, lambda kind, tensor: None):
        (torch.zeros(2) + 1).view(1, 2).sum()
    assert reasons == []


def test_conversions_go_to_who_hands_out_numbers() -> None:
    asked: list[type] = []

    def convert(tensor: torch.Tensor, kind: type[float], call: Callable[[], Any]) -> Any:
        asked.append(kind)
        return call()

    with EscapeWatch(lambda reason: None, lambda kind, tensor: None, on_convert=convert):
        assert (int(torch.ones(1)), float(torch.ones(1))) == (1, 1.0)
    assert asked == [int, float]


@pytest.mark.parametrize(
    ("look", "kind"),
    [
        (lambda t: t.tolist(), OutcomeKind.CONTENT),
        (lambda t: bool(t), OutcomeKind.TRUTH),
        (lambda t: [1, 2, 3][t.long()], OutcomeKind.INTEGER),
    ],
)
def test_what_python_sees_less_or_more_of_than_a_value_is_told_apart(look: Callable[[Any], Any], kind: Any) -> None:
    looks: list[tuple[OutcomeKind, torch.Tensor]] = []
    with EscapeWatch(lambda reason: None, lambda kind, tensor: looks.append((kind, tensor))):
        look(torch.ones(1))
    assert [found for found, _ in looks] == [kind]
