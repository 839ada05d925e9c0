"""What a forward on a GPU keeps in the host's memory until its backward reads it.

Copies to the host are queued behind what computes the tensor, so its memory may be taken again by what is queued after
them. Copies back run on a stream of their own: the next tensor is on its way while the backward computes with the
present one.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from dsjit.codegen.offload.tensors import KeptTensor
from dsjit.ops.strided import span

__all__ = ["Copies", "CudaCopies", "HostMemory", "HostTensor"]


class Copies(Protocol):
    """Copies between a device and its host. Tensors have one dimension."""

    def to_host(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """The copy, which is not there yet, and what tells when it is."""

    def to_device(self, host: torch.Tensor, copied: Any) -> tuple[torch.Tensor, Any]:
        """A copy on the device, and what tells when it is there. copied: when `host` is there."""

    def wait(self, done: Any) -> None:
        """What the device does from now on comes after that."""


class CudaCopies:
    """Copies of one GPU. The host's memory is pinned, without which copies would not overlap with kernels."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def to_host(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        return host, torch.cuda.current_stream(self._device).record_event()

    def to_device(self, host: torch.Tensor, copied: torch.cuda.Event) -> tuple[torch.Tensor, torch.cuda.Event]:
        # Its memory may have been freed just now: what uses it so far is queued on the current stream.
        tensor = torch.empty(host.shape, dtype=host.dtype, device=self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._stream.wait_event(copied)
        with torch.cuda.stream(self._stream):
            tensor.copy_(host, non_blocking=True)
        tensor.record_stream(self._stream)  # a backward may end before it has fetched this
        return tensor, self._stream.record_event()

    def wait(self, done: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(done)


class HostMemory:
    """Where one call keeps its tensors."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies

    def put(self, tensor: torch.Tensor) -> HostTensor:
        """Queue the copy of a tensor."""
        flat = tensor.as_strided((span(tensor.shape, tensor.stride()),), (1,))
        return HostTensor(self._copies, *self._copies.to_host(flat), tensor)


class HostTensor(KeptTensor):
    """A tensor of a device in the host's memory."""

    def __init__(self, copies: Copies, host: torch.Tensor, copied: Any, tensor: torch.Tensor) -> None:
        self._copies, self._host, self._copied = copies, host, copied
        self._shape, self._strides = tensor.shape, tensor.stride()
        self._ahead: tuple[torch.Tensor, Any] | None = None

    def read_ahead(self) -> None:
        if self._ahead is None:
            self._ahead = self._copies.to_device(self._host, self._copied)

    def fetch(self) -> torch.Tensor:
        self.read_ahead()
        assert self._ahead is not None
        (flat, done), self._ahead = self._ahead, None
        self._copies.wait(done)
        if self.following is not None:
            self.following.read_ahead()
        return flat.as_strided(self._shape, self._strides)
