"""What the host computes for a GPU is computed ahead. The device without memory stands for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from dsjit.api.hosted_program import HostedProgram, hosted_program
from dsjit.ir.graph import Graph, Value
from dsjit.passes.reference import run_reference
from dsjit.passes.split_host import HostSplit, split_host
from dsjit.trace.capture import capture
from tests.api.test_training_steps import OPTIMIZERS
from tests.api.training import Net

META = torch.device("meta")


def devices(values: object) -> set[str]:
    return {value.type.device.type for value in values}


def at_home(graph: Graph) -> Graph:
    """The same, where it can be run."""
    values = {*graph.inputs, *[value for node in graph.nodes for value in node.outputs]}
    moved = {value: Value(value.id, replace(value.type, device=torch.device("cpu"))) for value in values}

    def home(value: Value) -> Value:
        return moved.get(value, value)

    nodes = [
        replace(
            node,
            args=tuple([home(arg) if isinstance(arg, Value) else arg for arg in node.args]),
            kwargs={name: torch.device("cpu") if arg == META else arg for name, arg in node.kwargs.items()},
            outputs=tuple(map(home, node.outputs)),
        )
        for node in graph.nodes
    ]
    writes = tuple([replace(write, target=home(write.target), value=home(write.value)) for write in graph.writes])
    inputs, outputs = (tuple(map(home, each)) for each in (graph.inputs, graph.outputs))
    return replace(graph, inputs=inputs, nodes=tuple(nodes), outputs=outputs, writes=writes)


def graph_of(function: Callable[..., object], *arguments: torch.Tensor) -> Graph:
    return capture(function, arguments, {}, "f").segments[0].graph


def mixed() -> Graph:
    """A number that is counted up, on the host, and scales a tensor of the device; all are returned."""

    def function(x: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count.add_(1)
        factor = 1 / (1 - 0.5**count)
        return x * factor, x.exp() + factor.to(x.device, torch.float32), factor

    return graph_of(function, torch.empty(3, device="meta"), torch.zeros((), dtype=torch.float64))


def program_of(found: HostSplit, device: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]) -> HostedProgram:
    host = at_home(found.host)
    return hosted_program(found, lambda inputs: list(run_reference(host, inputs)), device)  # type: ignore[arg-type]


def test_the_host_makes_numbers_and_the_device_reads_none_in_the_hosts_memory() -> None:
    found = split_host(mixed(), META)
    assert found is not None
    assert devices([value for node in found.device.nodes for value in (*node.inputs(), *node.outputs)]) == {"meta"}
    assert devices(found.host.inputs) == {"cpu"} and devices(found.host.outputs) == {"cpu", "meta"}
    assert not found.device.writes and [write.target for write in found.written] == list(found.host.inputs)


def test_both_parts_do_what_the_whole_does() -> None:
    graph = mixed()
    found = split_host(graph, META)
    assert found is not None
    x, count, twin = torch.randn(3), *(torch.tensor(4.0, dtype=torch.float64) for _ in range(2))
    device = at_home(found.device)
    whole = program_of(found, lambda inputs: list(run_reference(device, inputs)))
    torch.testing.assert_close(whole([count, x]), list(run_reference(at_home(graph), [twin, x])))
    assert count == twin == 5


def test_what_the_host_writes_is_not_written_when_the_device_fails() -> None:
    def fail(inputs: object) -> list[torch.Tensor]:
        raise RuntimeError("out of memory")

    found, count = split_host(mixed(), META), torch.tensor(4.0, dtype=torch.float64)
    assert found is not None
    with pytest.raises(RuntimeError):
        program_of(found, fail)([count, torch.randn(3)])
    assert count == 4


def test_a_graph_of_one_device_stays_whole() -> None:
    assert split_host(graph_of(lambda x: x.exp() * 2, torch.empty(3, device="meta")), META) is None


def test_a_step_of_adam_leaves_the_device_nothing_of_the_hosts() -> None:
    model = Net().to("meta")
    optimizer = OPTIMIZERS["adamw"](model.parameters())

    def step(x: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()

    for _ in range(2):
        captured = capture(step, (torch.empty(5, 6, device="meta"),), {}, "step")
    graph = captured.segments[0].graph
    found = split_host(graph, META)
    assert found is not None and len(found.written) == 4
    device = found.device
    read = {value for node in device.nodes for value in node.inputs()} - set(device.constants)
    assert devices([*read, *device.inputs, *device.outputs]) == {"meta"}
    assert len([value for value in found.host.outputs if value.type.device == META]) == 2
