"""What waits in a host's memory comes back as it was, however late the copies are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from dsjit.codegen.low_memory import LowMemory
from dsjit.codegen.offload import stores
from dsjit.codegen.offload.host import HostMemory, HostTensor
from dsjit.codegen.offload.stores import HOST_MEMORY, open_stores
from dsjit.codegen.offload.tensors import TensorInMemory, read_in_order
from dsjit.ir.graph import TensorType


@dataclass
class LateCopies:
    """Copies that are not done before somebody waits for them. pending: what is queued on the second stream; log: the
    order in which copies begin and are waited for."""

    log: list[tuple[str, int]] = field(default_factory=list)

    def to_host(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Callable[[], None]]:
        host, content = torch.full_like(tensor, 7), tensor.clone()  # in the order of what computes
        return host, lambda: host.copy_(content)

    def to_device(self, host: torch.Tensor, copied: Callable[[], None]) -> tuple[torch.Tensor, Callable[[], None]]:
        device = torch.full_like(host, 9)
        self.log.append(("begin", host.numel()))

        def finish() -> None:
            copied()
            device.copy_(host)
            self.log.append(("done", host.numel()))

        return device, finish

    def wait(self, done: Callable[[], None]) -> None:
        done()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(4, 6),
        torch.randn(4, 6).t(),
        torch.randn(4, 6)[:, ::2],
        torch.randn(12)[5:],
        torch.randn(3, 1).expand(3, 4),
        torch.randn(0, 3),
        torch.tensor(2.5),
        torch.randint(0, 2, (9,)) > 0,
        torch.randn(5, dtype=torch.bfloat16),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}-{tensor.stride()}-{tensor.dtype}",
)
def test_a_tensor_comes_back_with_its_strides(tensor):
    kept = HostMemory(LateCopies()).put(tensor)
    expected = tensor.clone()
    if tensor.numel() and not any(stride == 0 for stride in tensor.stride()):
        tensor.zero_()  # its memory serves something else by then
    found = kept.fetch()
    assert torch.equal(found, expected) and found.stride() == tensor.stride() and found.dtype is tensor.dtype


def test_the_next_one_is_on_its_way_while_one_is_used():
    copies = LateCopies()
    memory = HostMemory(copies)
    first, second, third = (memory.put(torch.randn(size)) for size in (1, 2, 3))
    read_in_order([third, second, first])
    assert copies.log == [("begin", 3)]
    third.fetch()
    assert copies.log == [("begin", 3), ("done", 3), ("begin", 2)]
    second.fetch(), first.fetch()
    assert copies.log[3:] == [("done", 2), ("begin", 1), ("done", 1)]


def test_what_is_in_memory_all_the_same_lets_the_next_one_begin():
    copies = LateCopies()
    there, kept = TensorInMemory(torch.ones(2)), HostMemory(copies).put(torch.randn(5))
    read_in_order([there, kept])
    assert copies.log == []
    assert torch.equal(there.fetch(), torch.ones(2))
    assert copies.log == [("begin", 5)]


def test_a_tensor_can_be_fetched_again():
    tensor = torch.randn(5)
    kept = HostMemory(LateCopies()).put(tensor)
    first, second = kept.fetch(), kept.fetch()
    assert torch.equal(first, second) and first.data_ptr() != second.data_ptr()


def test_a_program_opens_a_store_of_the_device_of_what_it_keeps(monkeypatch):
    asked = []
    monkeypatch.setattr(stores, "CudaCopies", lambda device: asked.append(device) or LateCopies())
    type_ = TensorType((4,), torch.float32, (1,), torch.device("cuda", 1))
    lines, names = open_stores([type_], [3, 1], HOST_MEMORY)
    assert lines == ["store = open_store()", "read_in_order((a3, a1, ))"]
    assert isinstance(names["open_store"]().put(torch.ones(4)), HostTensor)
    assert asked == [torch.device("cuda", 1)]


def test_nothing_is_opened_for_a_program_that_keeps_nothing():
    way = LowMemory()
    assert open_stores([], [], way.tier) == ([], {})
