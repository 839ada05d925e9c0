"""What of torch's global state a compiled call depends on, where there are GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from dsjit.trace.reads import torch_state
from dsjit.trace.reads.torch_state import TorchState


@contextmanager
def changed(read: Callable[[], object], write: Callable[[object], object], value: object) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


CHANGES = {
    "autocast dtype on GPUs": (
        lambda: torch.get_autocast_dtype("cuda"),
        lambda dtype: torch.set_autocast_dtype("cuda", dtype),
        torch.bfloat16,
    ),
    "memory-efficient attention enabled": (
        torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp, False,
    ),
    "cuDNN's attention enabled": (
        torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp, False,
    ),
    "cuDNN enabled": (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled, False),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_decides_for_a_gpu_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.version.cuda is None:
        monkeypatch.setattr(torch_state, "_PROBES", (*torch_state._PROBES, *torch_state._GPU_PROBES))
    state = TorchState.current()
    assert state.check()
    with changed(*CHANGES[name]):
        assert not state.check() and name in str(state.why_not())
    assert state.check()
