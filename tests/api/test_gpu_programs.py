"""Programs for a GPU, on a machine that stands for one: steps, memory, library calls and launches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from dsjit.api.compile import StageTimer
from dsjit.api.compile_gpu import compile_gpu_graph, gpu_of
from dsjit.config import Environment
from dsjit.trace.capture import capture
from tests.codegen.triton.machines import InterpretingDriver, interpreting_machine


def block(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Kernels before and after a library call, on memory of the program's own."""
    y = F.layer_norm(x.float(), (16,)).sort(-1).values
    return (y.exp() * w).softmax(-1).half()


def several(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.t() + w.t(), (x * 2).sum(0)


@pytest.mark.parametrize("function", [block, several])
def test_a_program_does_what_eager_does(function: Callable[..., object]) -> None:
    arguments = (torch.randn(8, 16), torch.randn(8, 16))
    captured = capture(function, arguments, {}, "f")
    (segment,) = captured.segments
    driver = InterpretingDriver()
    compilation = compile_gpu_graph(
        segment.graph, "eager", Environment(check=1), interpreting_machine(driver), StageTimer(), None
    )
    order = {value.id: tensor for value, tensor in zip(segment.graph.inputs, captured.given, strict=True)}
    inputs = [order[value.id] for value in segment.graph.inputs]
    for _ in range(2):
        found = compilation.program(inputs)
        expected = function(*arguments)
        for one, other in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
            torch.testing.assert_close(one, other)
    assert len(driver.launched) == 2 * len(compilation.kernels) > 0
    assert list(compilation.program.streams) == [7]


def test_what_is_on_another_device_stays_there() -> None:
    """Numbers of the host's beside tensors of a GPU, for which the device without memory stands."""

    def both(x: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.exp() + 1, (other.exp() + 1).sum() * 2

    arguments = torch.randn(4, 8), torch.empty(3, device="meta")
    captured = capture(both, arguments, {}, "f")
    graph, machine = captured.segments[0].graph, interpreting_machine(InterpretingDriver())
    program = compile_gpu_graph(graph, "eager", Environment(check=1), machine, StageTimer(), None).program
    order = dict(zip(captured.inputs, captured.given, strict=True))
    found = program([order[value.id] for value in graph.inputs])
    assert [each.device.type for each in found] == ["cpu", "meta"]
    torch.testing.assert_close(found[0], arguments[0].exp() + 1)


def test_a_graph_on_the_cpu_has_no_gpu() -> None:
    captured = capture(lambda x: x + 1, (torch.randn(3),), {}, "f")
    assert gpu_of(captured.segments[0].graph) is None
