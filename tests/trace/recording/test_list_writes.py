"""Ops that write to lists of tensors are recorded tensor by tensor, where these tensors are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dsjit.ir.graph import UNKNOWN_SOURCE, Value
from dsjit.trace.capture import capture
from dsjit.trace.recording.list_writes import LIST_WRITES
from dsjit.trace.recording.memory import CannotTrace, tensor_type

unscale = LIST_WRITES[torch.ops.aten._amp_foreach_non_finite_check_and_unscale_.default]


def recorded(*args: object) -> list[Value]:
    """The values of the nodes."""
    made: list[Value] = []

    def emit(op: object, args: object, kwargs: object, type_: object) -> Value:
        made.append(Value(len(made), type_))
        return made[-1]

    memory = SimpleNamespace(
        read=lambda tensor: Value(-1, tensor_type(tensor)),
        expect_write=lambda tensor: None,
        overwrite=lambda tensor, value, source: None,
    )
    unscale(SimpleNamespace(memory=memory, emit=emit), args, UNKNOWN_SOURCE)
    return made


def test_gradients_are_unscaled_where_they_are() -> None:
    gradients = [torch.empty(3, device="meta"), torch.empty(2, dtype=torch.float64, device="meta")]
    found, scale = (torch.empty(1, device="meta") for _ in range(2))
    assert {value.type.device.type for value in recorded(gradients, found, scale)} == {"meta"}


def test_gradients_of_several_devices_are_not_recorded() -> None:
    gradients = [torch.empty(3, device="meta"), torch.empty(3)]
    with pytest.raises(CannotTrace, match="several devices"):
        recorded(gradients, torch.empty(1), torch.empty(1))


def test_what_is_done_to_lists_is_recorded_tensor_by_tensor_on_any_device() -> None:
    """As gradients are clipped, and by optimizers that are not known, on a GPU."""

    def clip(x: torch.Tensor, y: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        torch._foreach_mul_([x, y], factor)
        return torch.stack(torch._foreach_norm([x, y]))

    captured = capture(clip, tuple(torch.empty(shape, device="meta") for shape in ((3,), (2, 4), ())), {}, "clip")
    assert not captured.problems
    graph = captured.segments[0].graph
    assert not [node.op for node in graph.nodes if "_foreach" in str(node.op)]
    assert len(graph.writes) == 2
