"""What torch's global state decides on CUDA tensors, asked on any machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dsjit.trace.reads.torch_state import CUDA_PROBES

PROBES = dict(CUDA_PROBES)


@contextmanager
def changed(change: Callable[[Any], object], to: object, back: object) -> Iterator[None]:
    change(to)
    try:
        yield
    finally:
        change(back)


CHANGES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast dtype on CUDA": lambda: torch.autocast("cuda", torch.bfloat16),
    "order of attention's backends": lambda: sdpa_kernel(
        [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True
    ),
    "cuDNN enabled": lambda: changed(torch._C._set_cudnn_enabled, False, True),
}


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("name", PROBES)
def test_a_change_is_seen_and_is_over_afterwards(name: str) -> None:
    probe = PROBES[name]
    before = probe()
    assert probe() is before, "one object stands for one state"
    with CHANGES[name]():
        assert probe() is not before
    assert probe() is before
