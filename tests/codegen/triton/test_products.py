"""Matrix products as Kernels: their definition, and every candidate in Triton's interpreter, equal eager's product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dsjit.api.compile import StageTimer, lower_units
from dsjit.api.compile_gpu import compile_gpu_graph
from dsjit.codegen.interpreter import run_kernel
from dsjit.codegen.target import gpu_target
from dsjit.codegen.templates.product import fuse_products
from dsjit.codegen.triton.compiler import compile_source, resources
from dsjit.codegen.triton.contraction import contraction_of
from dsjit.codegen.triton.emit import candidates
from dsjit.codegen.triton.interpret import interpret_source
from dsjit.codegen.triton.target import TritonTarget
from dsjit.config import Autotune, Environment
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.planner import LibraryUnit, plan_fusion
from dsjit.ir.graph import Value
from dsjit.ir.kernel import MatrixPrecision
from dsjit.ir.verify_kernel import verify_kernel
from dsjit.passes.fuel import Fuel
from dsjit.passes.pipeline import run_passes
from dsjit.trace.capture import capture
from tests.codegen.triton.machines import InterpretingDriver, interpreting_machine
from tests.models.test_models import bert, built, llama

f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16
H100 = TritonTarget.parse("cuda:sm_90")

Function = Callable[..., torch.Tensor]


def plain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x @ y


def linear_gelu(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.gelu(F.linear(x, w, b))


def scaled_residual(x: torch.Tensor, y: torch.Tensor, residual: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return residual + (x @ y) * scale[:, None]


def transposed_result(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return (x @ y).t().relu() + z


def heads(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ y).view(x.shape[0], 2, -1).transpose(0, 1).sigmoid()


def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-2, -1)) * 0.125 + 1


def weighted_bias(x: torch.Tensor, y: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.addmm(b, x, y, beta=0.5, alpha=2.0).relu()


CASES: dict[str, tuple[Function, tuple[tuple[int, ...], ...], int]] = {
    "alone": (plain, ((20, 40), (40, 17)), 1),
    "of exact tiles": (plain, ((32, 16), (16, 32)), 1),
    "of one row": (plain, ((1, 40), (40, 24)), 1),
    "linear and gelu": (linear_gelu, ((17, 18), (19, 18), (19,)), 2),
    "residual and scale of rows": (scaled_residual, ((17, 8), (8, 35), (17, 35), (17,)), 2),
    "transposed result": (transposed_result, ((19, 16), (16, 23), (23, 19)), 2),
    "columns apart as heads": (heads, ((18, 10), (10, 32)), 2),
    "batched": (scores, ((3, 2, 18, 8), (3, 2, 10, 8)), 2),
    "factors of a bias": (weighted_bias, ((18, 10), (10, 22), (18, 22)), 2),
}
"""The function, the shapes of its arguments, and how many nodes are the least that its kernel does."""


def drawn(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple([torch.randn(shape, generator=generator).to(dtype) for shape in shapes])


def units_of(
    function: Function, arguments: tuple[torch.Tensor, ...], precision: MatrixPrecision = "exact"
) -> tuple[list[FusedKernel | LibraryUnit], dict[Value, torch.Tensor], Value]:
    """The units of the compiled function with every product a Kernel, its inputs, and its result."""
    captured = capture(function, arguments, {}, "f")
    graph = captured.segments[0].graph
    target = gpu_target(torch.device("cpu"))
    optimized = run_passes(graph, check=True, passes=target.passes)
    plan = plan_fusion(optimized, target.limits, target.device)
    results = tuple(optimized.results())
    units = fuse_products(lower_units(plan, False), plan.views, results, precision, lambda choice: True)
    given = dict(zip(captured.inputs, captured.given, strict=True))
    known = {value: given[value.id] for value in optimized.inputs}
    return units, {**known, **optimized.constants}, plan.views.base(results[0])


def kernel_of(function: Function, arguments: tuple[torch.Tensor, ...], precision: MatrixPrecision = "exact") -> Any:
    """Its one Kernel, buffers for it, and its result among them."""
    units, known, result = units_of(function, arguments, precision)
    (fused,) = units
    assert isinstance(fused, FusedKernel)
    verify_kernel(fused.kernel)
    buffers = {
        param.name: known[value].view(-1) if value in known else torch.zeros(value.type.numel, dtype=param.dtype)
        for value, param in zip(fused.values, fused.kernel.params, strict=True)
    }
    place = dict(zip(fused.values, fused.kernel.params, strict=True))[result].name
    return fused, buffers, torch.as_strided(buffers[place], result.type.shape, result.type.strides)


def close(found: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    """exact: in float64, of the rounded arguments; the product itself is rounded to `dtype` where eager rounds it."""
    tolerance = {f32: 1e-5, bf16: 2**-6, f16: 2**-9}[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", [f32, bf16, f16])
@pytest.mark.parametrize("name", CASES)
def test_the_definition_and_the_best_candidate_equal_float64(name: str, dtype: torch.dtype) -> None:
    function, shapes, nodes = CASES[name]
    arguments = drawn(shapes, dtype)
    fused, buffers, result = kernel_of(function, arguments)
    assert len(fused.nodes) >= nodes
    exact = function(*[argument.double() for argument in arguments])
    run_kernel(fused.kernel, buffers)
    close(result, exact, dtype)
    assert contraction_of(fused.kernel) is not None or name == "of one row"
    result.zero_()
    interpret_source(candidates(fused.kernel, H100)[0], buffers)
    close(result, exact, dtype)


@pytest.mark.parametrize("dtype", [f32, bf16])
@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90", "hip:gfx942"])
def test_every_candidate_equals_float64(target: str, dtype: torch.dtype) -> None:
    arguments = drawn(((70, 40), (90, 40), (90,)), dtype)
    fused, buffers, result = kernel_of(linear_gelu, arguments)
    exact = linear_gelu(*[argument.double() for argument in arguments])
    sources = candidates(fused.kernel, TritonTarget.parse(target))
    assert len({source.constants for source in sources}) == len(sources) > 1
    for source in sources:
        result.zero_()
        interpret_source(source, buffers)
        close(result, exact, dtype)


def int8_weight(x: torch.Tensor, w: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w.to(x.dtype) * scales[:, None]).relu()


def int8_matrix(x: torch.Tensor, w: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return x @ (w.to(x.dtype) * scales)


def int8_activations(w: torch.Tensor, x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (x.to(w.dtype) * scales[:, None]) @ w + scales[:, None]


def transposed_activations(w: torch.Tensor, x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (x.to(w.dtype) * scales).t() @ w


@pytest.mark.parametrize("dtype", [f32, bf16])
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (int8_weight, ((17, 20), (24, 20), (24,))),
        (int8_matrix, ((17, 20), (20, 24), (24,))),
        (int8_activations, ((20, 17), (24, 20), (24,))),
        (transposed_activations, ((20, 17), (20, 24), (24,))),
    ],
)
def test_a_matrix_in_int8_is_scaled_where_it_is_read(
    function: Function, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype
) -> None:
    one, other, scales = drawn(shapes, dtype)
    arguments = one, (other * 30).to(torch.int8), scales / 30
    fused, buffers, result = kernel_of(function, arguments)
    exact = function(*[argument.double() for argument in arguments])
    run_kernel(fused.kernel, buffers)
    close(result, exact, dtype)
    result.zero_()
    interpret_source(candidates(fused.kernel, H100)[0], buffers)
    close(result, exact, dtype)


def test_what_makes_an_operand_of_more_bytes_than_it_has_is_a_kernel_of_its_own() -> None:
    units, _, _ = units_of(lambda x, gate, y: (x * gate) @ y, drawn(((20, 30), (20, 30), (30, 25)), bf16))
    assert len(units) == 2


def scaled(x: torch.Tensor, w: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor) -> torch.Tensor:
    return torch._scaled_mm(x, w.t(), scale_a, scale_b, out_dtype=bf16).relu()


def scaled_bias(
    x: torch.Tensor, w: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    return torch._scaled_mm(x, w.t(), scale_a, scale_b, bias, out_dtype=bf16)


EAGER_SCALES_ROWS = pytest.mark.skipif(
    torch.__version__ < "2.13", reason="torch 2.11 has no product of float8 on CPUs that scales rows: no trace of one"
)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("by_rows", [False, pytest.param(True, marks=EAGER_SCALES_ROWS)])
@pytest.mark.parametrize("function", [scaled, scaled_bias])
def test_products_of_float8_are_scaled(function: Function, by_rows: bool, dtype: torch.dtype) -> None:
    x, w = (each.to(dtype) for each in drawn(((16, 48), (32, 48)), f32))
    scales = drawn(((16, 1), (1, 32)), f32) if by_rows else (torch.tensor(0.5), torch.tensor(0.25))
    bias = drawn(((32,),), bf16) if function is scaled_bias else ()
    fused, buffers, result = kernel_of(function, (x, w, *scales, *bias))
    exact = (x.double() @ w.double().t()) * scales[0] * scales[1]
    exact = exact + bias[0].double() if bias else exact.relu()
    run_kernel(fused.kernel, buffers)
    close(result, exact, bf16)
    result.zero_()
    interpret_source(candidates(fused.kernel, H100)[0], buffers)
    close(result, exact, bf16)


@pytest.mark.parametrize("target", ["cuda:sm_90", "cuda:sm_100"])
def test_products_of_float8_use_its_instructions(target: str) -> None:
    x, w = (each.to(torch.float8_e4m3fn) for each in drawn(((256, 256), (256, 256)), f32))
    fused, _, _ = kernel_of(scaled, (x, w, torch.tensor(0.5), torch.tensor(0.25)))
    chosen = TritonTarget.parse(target)
    code = compile_source(candidates(fused.kernel, chosen)[0], chosen)
    assert resources(code).spills == 0
    assert ".e4m3" in code.assembly or "f8f6f4" in code.assembly


@pytest.mark.parametrize(("dtype", "precision"), [(bf16, "exact"), (torch.float16, "exact"), (f32, "tf32")])
@pytest.mark.parametrize("rows", [4096, 512])
def test_large_products_stream_whole_lines_into_wgmma(
    rows: int, dtype: torch.dtype, precision: MatrixPrecision
) -> None:
    fused, _, _ = kernel_of(linear_gelu, drawn(((rows, 1024), (4096, 1024), (4096,)), dtype), precision)
    source = candidates(fused.kernel, H100)[0]
    line = 128
    assert dict(source.constants)["KBLOCK"] * dtype.itemsize >= line
    assert source.schedule.stages is not None and source.schedule.stages >= 3
    assembly = compile_source(source, H100).assembly
    assert "wgmma.mma_async" in assembly and "mma.sync" not in assembly
    assert "cp.async.cg.shared.global" in assembly
    assert "st.global.v4.b32" in assembly


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90", "cuda:sm_100", "hip:gfx942"])
@pytest.mark.parametrize(("dtype", "precision"), [(bf16, "exact"), (f32, "tf32"), (f32, "exact")])
def test_the_best_candidate_fits_the_target(target: str, dtype: torch.dtype, precision: MatrixPrecision) -> None:
    arguments = drawn(((512, 256), (512, 256), (512,)), dtype)
    fused, _, _ = kernel_of(linear_gelu, arguments, precision)
    chosen = TritonTarget.parse(target)
    source = candidates(fused.kernel, chosen)[0]
    code = compile_source(source, chosen)
    assert resources(code).spills == 0, source.text
    assert code.shared <= chosen.shared_bytes
    if target == "cuda:sm_90":
        assert ("wgmma" in code.assembly) == (precision == "tf32" or dtype is bf16)


@pytest.mark.parametrize("make", [bert, llama])
def test_products_of_a_model_are_kernels_in_its_program(make: Callable[[], torch.nn.Module]) -> None:
    model, tokens = built(make, bf16), torch.arange(10).reshape(2, 5)
    found: dict[Autotune, list[torch.Tensor]] = {}
    choices: tuple[Autotune, ...] = ("off", "model")
    with torch.no_grad():
        captured = capture(model._call_impl, (tokens,), {}, "f")
        order = dict(zip(captured.inputs, captured.given, strict=True))
        graph = captured.segments[0].graph
        for autotune in choices:
            machine = interpreting_machine(InterpretingDriver())
            compilation = compile_gpu_graph(
                graph, "eager", Environment(check=1), machine, StageTimer(), None, autotune=autotune
            )
            products = [fused for fused in compilation.kernels if contraction_of(fused.kernel) is not None]
            assert bool(products) == (autotune == "model")
            found[autotune] = compilation.program([order[value.id] for value in graph.inputs])
    for one, other in zip(found["model"], found["off"], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=4e-2)


def test_fuel_counts_products() -> None:
    arguments = drawn(((24, 32), (40, 32), (40,)), bf16)
    graph = capture(linear_gelu, arguments, {}, "f").segments[0].graph
    fuel = Fuel()
    machine = interpreting_machine(InterpretingDriver())
    compile_gpu_graph(graph, "eager", Environment(), machine, StageTimer(), None, fuel, "model")
    assert fuel.done[-1].kind == "kernel" and "addmm" in fuel.done[-1].name
    less = Fuel(len(fuel.done) - 1)
    compilation = compile_gpu_graph(graph, "eager", Environment(), machine, StageTimer(), None, less, "model")
    assert all(contraction_of(fused.kernel) is None for fused in compilation.kernels)


def test_a_product_that_something_else_reads_is_stored() -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        product = x @ y
        return product, product.relu()

    units, _, _ = units_of(f, drawn(((20, 30), (30, 25)), f32))
    assert [len(unit.nodes) for unit in units if isinstance(unit, FusedKernel)] == [1, 1]


def test_a_reduction_behind_a_product_is_a_kernel_of_its_own() -> None:
    units, _, _ = units_of(lambda x, y: (x @ y).softmax(-1), drawn(((20, 30), (30, 25)), f32))
    assert len(units) == 2


def test_the_order_of_sums_is_free_for_products_alone() -> None:
    """A sum of products that the user wrote is added up as sums are."""
    captured = capture(lambda x, y: (x[:, None] * y).sum(-1), drawn(((20, 32), (30, 32)), f32), {}, "f")
    target = gpu_target(torch.device("cpu"))
    plan = plan_fusion(run_passes(captured.segments[0].graph, passes=target.passes), target.limits, target.device)
    (fused,) = lower_units(plan, False)
    assert isinstance(fused, FusedKernel) and contraction_of(fused.kernel) is None
