"""Which library computes attention, by a device whose times are made up and ops that stand for CUDA's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsjit.api.compile import Compilation, StageTimer
from dsjit.api.compile_gpu import choose_libraries, compile_gpu_graph
from dsjit.codegen.templates.attention_backends import BACKENDS, attention_calls
from dsjit.codegen.triton.machine import GpuMachine
from dsjit.config import Autotune, Environment
from dsjit.ir.graph import Graph
from dsjit.passes.fuel import Fuel
from dsjit.passes.partition import partition
from dsjit.passes.pipeline import JOINT_PASSES, run_passes
from dsjit.passes.reference import run_reference
from dsjit.trace.capture import capture
from tests.codegen.triton.libraries import CUDNN, EFFICIENT, FLASH, OpMeter, measuring_machine
from tests.gpu_attention import gpu_attention

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def ops() -> Iterator[None]:
    with gpu_attention():
        yield


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool = True, bias: torch.Tensor | None = None
) -> torch.Tensor:
    if bias is not None:
        return aten._scaled_dot_product_efficient_attention.default(q, k, v, bias, torch.is_grad_enabled())[0]
    return aten._scaled_dot_product_flash_attention.default(q, k, v, 0.0, is_causal)[0]


def gradients(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
        out = attention(*leaves)
        return out.detach() * 2, *torch.autograd.grad(out.square().sum(), leaves)


def heads(rows: int = 16, keys: int = 16) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, 4, size, 8, generator=generator) for size in (rows, keys, keys))


def recorded(function: Callable[..., object], *arguments: torch.Tensor) -> tuple[Graph, list[torch.Tensor]]:
    """The Graph as the compiler sees it, and its inputs."""
    captured = capture(function, arguments, {}, "f")
    (segment,) = captured.segments
    order = {value.id: tensor for value, tensor in zip(segment.graph.inputs, captured.given, strict=True)}
    return run_passes(segment.graph), [order[value.id] for value in segment.graph.inputs]


def used(graph: Graph) -> list[str]:
    """The libraries whose ops compute attention, in order."""
    names = [str(node.op).removeprefix("aten._scaled_dot_product_") for node in graph.nodes]
    return [name.removesuffix(".default").replace("_attention", "") for name in names if "attention" in name]


def compiled(graph: Graph, gpu: GpuMachine, autotune: Autotune = "measure") -> Compilation:
    return compile_gpu_graph(graph, "eager", Environment(check=1), gpu, StageTimer(), None, autotune=autotune)


@pytest.mark.parametrize(
    ("times", "fastest"),
    [
        ({"flash": 3.0, "cudnn": 2.0, "efficient": 4.0}, "cudnn"),
        ({"flash": 3.0, "cudnn": 2.0, "efficient": 1.0}, "efficient"),
        ({"flash": 1.0, "cudnn": 2.0, "efficient": 1.0}, "flash"),
    ],
)
def test_the_fastest_backend_computes_it(times: dict[str, float], fastest: str, tmp_path: Path) -> None:
    graph, inputs = recorded(attention, *heads())
    compilation = compiled(graph, measuring_machine(OpMeter(times), tmp_path))
    assert used(compilation.optimized) == [fastest]
    torch.testing.assert_close(compilation.program(inputs)[0], attention(*heads()))


@pytest.mark.parametrize("fastest", ["flash", "cudnn", "efficient"])
def test_gradients_go_with_their_forward(fastest: str, tmp_path: Path) -> None:
    graph, inputs = recorded(gradients, *heads())
    times = {"flash": 2.0, "cudnn": 2.0, "efficient": 2.0, fastest: 1.0}
    chosen = choose_libraries(graph, measuring_machine(OpMeter(times), tmp_path), None)
    assert used(chosen) == [fastest, f"{fastest}_backward"]
    for found, expected in zip(run_reference(chosen, inputs), gradients(*heads()), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("autotune", ["off", "model"])
def test_without_measuring_what_was_recorded_stays(autotune: Autotune, tmp_path: Path) -> None:
    graph, _ = recorded(gradients, *heads())
    meter = OpMeter({"cudnn": 1.0})
    assert "flash" in used(compiled(graph, measuring_machine(meter, tmp_path), autotune).optimized)
    assert meter.called == []


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    graph, _ = recorded(gradients, *heads())
    first, again = OpMeter({"flash": 2.0, "cudnn": 1.0}), OpMeter({"flash": 1.0, "cudnn": 2.0})
    for meter in (first, again):
        assert used(choose_libraries(graph, measuring_machine(meter, tmp_path, (FLASH, CUDNN)), None))[0] == "cudnn"
    assert first.called and again.called == []


def test_equal_layers_are_measured_once(tmp_path: Path) -> None:
    graph, _ = recorded(lambda q, k, v: attention(attention(q, k, v), k, v), *heads())
    gpu = measuring_machine(OpMeter({"flash": 2.0, "cudnn": 1.0}), tmp_path, (FLASH, CUDNN))
    assert used(choose_libraries(graph, gpu, None)) == ["cudnn", "cudnn"]
    assert gpu.tuner is not None and gpu.tuner.measured == 1


def test_one_that_raises_is_left_out(tmp_path: Path) -> None:
    refuses = replace(FLASH, name="refuses", forward=aten._scaled_dot_product_fused_attention_overrideable.default)
    graph, _ = recorded(attention, *heads())
    gpu = measuring_machine(OpMeter({"flash": 2.0, "cudnn": 1.0}), tmp_path, (FLASH, refuses, CUDNN))
    assert used(choose_libraries(graph, gpu, None)) == ["cudnn"]
    only = measuring_machine(OpMeter({"flash": 2.0}), tmp_path, (FLASH, refuses))
    assert choose_libraries(graph, only, None) is graph


def test_one_that_torch_says_is_of_no_use_is_not_run(tmp_path: Path) -> None:
    graph, _ = recorded(attention, *heads())
    asked: list[object] = []
    picky = replace(CUDNN, is_usable=lambda params: asked.append(params.is_causal))
    meter = OpMeter({"flash": 2.0, "cudnn": 1.0})
    assert choose_libraries(graph, measuring_machine(meter, tmp_path, (FLASH, picky)), None) is graph
    assert asked == [True] and not any("cudnn" in name for name in meter.called)


def test_one_that_the_user_has_switched_off_is_none(tmp_path: Path) -> None:
    graph, _ = recorded(attention, *heads())
    off = replace(CUDNN, is_enabled=lambda: False)
    assert choose_libraries(graph, measuring_machine(OpMeter({}), tmp_path, (FLASH, off)), None) is graph
    gpu = measuring_machine(OpMeter({"flash": 2.0, "cudnn": 1.0}), tmp_path, (FLASH, CUDNN))
    assert used(choose_libraries(graph, gpu, None)) == ["cudnn"]


def test_one_that_computes_something_else_is_left_out(tmp_path: Path) -> None:
    def blind(q, k, v, bias=None, dropout_p=0.0, is_causal=False, *, scale=None):
        return FLASH.forward(q, k, v, 0.0, False)

    other = aten._scaled_dot_product_fused_attention_overrideable.default
    backends = (FLASH, replace(FLASH, name="blind", forward=other))
    meter = OpMeter({"flash": 2.0, "fused": 1.0})
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl(other.name(), blind, "CPU")
        for is_causal, expected in ((True, "flash"), (False, "fused_overrideable")):
            graph, _ = recorded(lambda q, k, v, is_causal=is_causal: attention(q, k, v, is_causal), *heads())
            assert used(choose_libraries(graph, measuring_machine(meter, tmp_path, backends), None)) == [expected]


def test_the_strides_of_results_stay(tmp_path: Path) -> None:
    graph, inputs = recorded(gradients, *heads())
    gpu = measuring_machine(OpMeter({"flash": 2.0, "efficient": 1.0}), tmp_path, (FLASH, EFFICIENT))
    compilation = compiled(graph, gpu)
    assert used(compilation.optimized)[0] == "efficient"
    for found, value in zip(compilation.program(inputs), graph.outputs, strict=True):
        assert found.stride() == value.type.strides
    (node,) = [node for node in compilation.optimized.nodes if node.op is EFFICIENT.forward]
    own = EFFICIENT.forward(*heads(), None, True)[0]
    assert own.stride() != node.outputs[0].type.strides == heads()[0].stride()


@pytest.mark.parametrize("number", [1, 6])
def test_a_forward_whose_sums_or_seeds_others_read_stays(number: int, tmp_path: Path) -> None:
    def both(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = aten._scaled_dot_product_flash_attention.default(q, k, v)
        return results[0], results[number]

    def added(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        results = aten._scaled_dot_product_flash_attention.default(q, k, v)
        return results[0].sum() + results[number].sum()

    for function in (both, added):
        graph, _ = recorded(function, *heads())
        assert list(attention_calls(graph)) == []
        gpu = measuring_machine(OpMeter({"flash": 2.0, "cudnn": 1.0}), tmp_path, (FLASH, CUDNN))
        assert choose_libraries(graph, gpu, None) is graph


@pytest.mark.parametrize("fastest", ["flash", "cudnn", "efficient"])
def test_halves_that_are_compiled_apart_are_of_one_library(fastest: str, tmp_path: Path) -> None:
    times = {"flash": 2.0, "cudnn": 2.0, "efficient": 2.0, fastest: 1.0}
    joint = capture(attention, tuple([tensor.requires_grad_() for tensor in heads()]), {}, "f").joint
    assert joint is not None
    whole = choose_libraries(
        run_passes(joint.graph, passes=JOINT_PASSES), measuring_machine(OpMeter(times), tmp_path), None
    )
    halves = partition(replace(joint, graph=whole))
    assert (used(halves.forward), used(halves.backward)) == ([fastest], [f"{fastest}_backward"])
    slower = measuring_machine(
        OpMeter({"flash": 1.0, "cudnn": 1.0, "efficient": 1.0, fastest: 2.0}), tmp_path / "other"
    )
    for half in (halves.forward, halves.backward):
        assert choose_libraries(half, slower, None) is half


def test_masks_are_for_those_that_take_any(tmp_path: Path) -> None:
    bias = torch.zeros(2, 4, 16, 16)
    graph, _ = recorded(lambda q, k, v, bias: attention(q, k, v, bias=bias), *heads(), bias)
    (call,) = attention_calls(graph)
    assert [call.fits(backend) for backend in BACKENDS] == [False, False, True]
    gpu = measuring_machine(OpMeter({"flash": 1.0, "cudnn": 1.0, "efficient": 2.0}), tmp_path)
    assert choose_libraries(graph, gpu, None) is graph


@pytest.mark.parametrize(("batch", "fits"), [(2, True), (1, False)])
def test_a_mask_that_is_repeated_is_for_the_one_that_was_recorded(batch: int, fits: bool) -> None:
    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return CUDNN.forward(q, k, v, bias, False)[0]

    graph, _ = recorded(masked, *heads(), torch.zeros(batch, 4, 16, 16))
    (call,) = attention_calls(graph)
    assert call.backend is BACKENDS[1] and call.fits(EFFICIENT) is fits


def test_fuel_bounds_it(tmp_path: Path) -> None:
    graph, _ = recorded(gradients, *heads())
    gpu = measuring_machine(OpMeter({"flash": 2.0, "cudnn": 1.0}), tmp_path, (FLASH, CUDNN))
    assert choose_libraries(graph, gpu, Fuel(0)) is graph
    fuel = Fuel()
    assert used(choose_libraries(graph, gpu, fuel))[0] == "cudnn"
    (rewrite,) = fuel.done
    assert rewrite.kind == "library" and rewrite.detail == "by aten._scaled_dot_product_cudnn_attention.default"
