"""Programs for a GPU, on a machine that stands for one: steps, memory, library calls and launches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import dsjit
from dsjit.api import builder
from dsjit.api.compile import StageTimer
from dsjit.api.compile_gpu import compile_gpu_graph, gpu_of
from dsjit.api.entry import session
from dsjit.codegen.triton.machine import GpuMachine
from dsjit.config import Environment
from dsjit.trace.capture import capture
from tests.codegen.triton.libraries import CUDNN, FLASH, OpMeter, measuring_machine
from tests.codegen.triton.machines import InterpretingDriver, interpreting_machine
from tests.gpu_attention import gpu_attention


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


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention.default(q * 2, k, v, 0.0, True)[0] + 1


def stand_in_gpu(monkeypatch: pytest.MonkeyPatch, machine: GpuMachine) -> None:
    """Calls with backend="triton" take the CPU for it, and no program of an earlier test."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(builder, "gpu_of", lambda graph: cpu)
    for name, empty in (("gpus", {cpu: machine}), ("trainings", {}), ("programs", {})):
        monkeypatch.setattr(session(), name, empty)


@pytest.mark.parametrize("fastest", ["cudnn", "efficient"])
def test_training_takes_the_fastest_attention_both_ways(
    fastest: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    meter = OpMeter({"flash": 2.0, "cudnn": 2.0, "efficient": 2.0, fastest: 1.0})
    stand_in_gpu(monkeypatch, measuring_machine(meter, tmp_path))
    found, expected = ([torch.randn(1, 2, 16, 8).requires_grad_() for _ in range(3)] for _ in range(2))
    for one, other in zip(found, expected, strict=True):
        other.data.copy_(one)
    jitted = dsjit.jit(attention, backend="triton", autotune="measure", fullgraph=True)
    with gpu_attention():
        jitted(*found).square().sum().backward()
        attention(*expected).square().sum().backward()
        told = dsjit.explain(jitted)(*found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert [call.op for call in told.library_calls] == [f"aten._scaled_dot_product_{fastest}_attention.default"]


def test_a_library_that_is_switched_off_is_used_no_longer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backends = FLASH, replace(CUDNN, is_enabled=torch.backends.cuda.cudnn_sdp_enabled)
    stand_in_gpu(monkeypatch, measuring_machine(OpMeter({"flash": 2.0, "cudnn": 1.0}), tmp_path, backends))
    arguments = [torch.randn(1, 2, 16, 8) for _ in range(3)]
    jitted = dsjit.jit(attention, backend="triton", autotune="measure", fullgraph=True)

    def called() -> list[str]:
        return [call.op.split("_")[4] for call in dsjit.explain(jitted)(*arguments).library_calls]

    with gpu_attention():
        assert called() == ["cudnn"]
        torch.backends.cuda.enable_cudnn_sdp(False)
        try:
            assert called() == ["flash"]
        finally:
            torch.backends.cuda.enable_cudnn_sdp(True)
        assert called() == ["cudnn"]
