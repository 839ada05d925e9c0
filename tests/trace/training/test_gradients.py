"""Backwards inside a traced call run in its thread, also those of a GPU, so that all of them is seen."""

from __future__ import annotations

import pytest
import torch

from dsjit.trace.capture import capture


def test_the_engine_is_told_to_stay_in_the_thread_as_long_as_a_call_is_traced() -> None:
    seen: list[bool] = []

    def step(x: torch.Tensor) -> None:
        seen.append(torch._C._is_multithreading_enabled())
        (x * x).sum().backward()
        seen.append(torch._C._is_multithreading_enabled())

    x = torch.randn(3, requires_grad=True)
    capture(step, (x,), {}, "step")
    assert seen == [False, False] and torch._C._is_multithreading_enabled()
    with torch.autograd.set_multithreading_enabled(False):
        capture(step, (x,), {}, "step")
        assert not torch._C._is_multithreading_enabled()


def test_it_may_have_a_thread_again_when_the_call_has_raised() -> None:
    def step() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        capture(step, (), {}, "step")
    assert torch._C._is_multithreading_enabled()
