"""The backward of a traced call stays on the thread that is traced, whatever the device."""

from __future__ import annotations

import _thread
import time

import pytest
import torch

from dsjit.ir.graph import UNKNOWN_SOURCE, Source
from dsjit.trace.capture import capture
from dsjit.trace.recording.source import SourceFinder

is_enabled = torch._C._is_multithreading_enabled


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_autograd_has_one_thread_while_a_call_is_traced(before: bool, fails: bool) -> None:
    seen: list[bool] = []

    def step(x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            leaf.register_hook(lambda gradient: seen.append(is_enabled()))
            (gradient,) = torch.autograd.grad(leaf.exp().sum(), leaf)
        return 1 / 0 if fails else gradient

    with torch.autograd.set_multithreading_enabled(before):
        if fails:
            with pytest.raises(ZeroDivisionError):
                capture(step, (torch.ones(3),), {}, "step")
        else:
            capture(step, (torch.ones(3),), {}, "step")
        assert seen == [False]
        assert is_enabled() == before


@pytest.mark.parametrize("find", [SourceFinder().of_op, SourceFinder().current])
def test_a_thread_without_frames_runs_no_line_of_the_users(find) -> None:
    found: list[Source] = []
    _thread.start_new_thread(found.extend, (map(find, [2]),))
    deadline = time.monotonic() + 60.0
    while not found and time.monotonic() < deadline:
        time.sleep(0.001)
    assert found == [UNKNOWN_SOURCE]
