"""Ways by which the content of a tensor reaches Python without an ATen call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dsjit.trace.escape import EscapeWatch


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda t: t.numpy(), "numpy"),
        (lambda t: np.asarray(t), "numpy"),
        (lambda t: t.data_ptr(), "address"),
        (lambda t: t.untyped_storage(), "storage"),
        (lambda t: t.requires_grad_(), "requires_grad"),
        (lambda t: setattr(t, "data", torch.ones(2)), ".data"),
        (lambda t: setattr(t, "grad", torch.ones(2)), ".grad"),
    ],
)
def test_each_way_out_is_noticed(use: Callable[[torch.Tensor], Any], reason: str) -> None:
    reasons: list[str] = []
    with EscapeWatch(reasons.append, lambda tensor: None):
        use(torch.zeros(2))
    assert any(reason in text for text in reasons)


def test_ordinary_ops_are_no_escape_and_tolist_is_told_apart() -> None:
    reasons: list[str] = []
    listed: list[torch.Tensor] = []
    x = torch.zeros(2)
    with EscapeWatch(reasons.append, listed.append):
        (x + 1).view(1, 2).sum()
        assert x.tolist() == [0.0, 0.0]
    assert reasons == [] and len(listed) == 1 and listed[0] is x
