"""Attention as Kernels: the definition, and candidates in Triton's interpreter, equal attention in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dsjit.api.compile import StageTimer, lower_units
from dsjit.api.compile_gpu import compile_gpu_graph
from dsjit.codegen.interpreter import run_kernel
from dsjit.codegen.target import gpu_target
from dsjit.codegen.templates.fuse import fuse_templates
from dsjit.codegen.triton.compiler import compile_source, resources
from dsjit.codegen.triton.emit import candidates
from dsjit.codegen.triton.emitter import emit_kernel
from dsjit.codegen.triton.interpret import interpret_source
from dsjit.codegen.triton.stream import stream_of
from dsjit.codegen.triton.target import KNOWN_TARGETS, TritonTarget
from dsjit.codegen.triton.tuning import saves_traffic
from dsjit.config import Environment
from dsjit.errors import BackendError
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.planner import LibraryUnit, plan_fusion
from dsjit.ir.graph import Value
from dsjit.ir.kernel import Kernel
from dsjit.ir.print_kernel import print_kernel
from dsjit.ir.verify_kernel import verify_kernel
from dsjit.passes.pipeline import run_passes
from dsjit.trace.capture import capture
from tests.codegen.triton.machines import InterpretingDriver, interpreting_machine
from tests.gpu_attention import gpu_attention

aten = torch.ops.aten
f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16
H100 = TritonTarget.parse("cuda:sm_90")

Function = Callable[..., Any]


def units_of(
    function: Function, arguments: Sequence[torch.Tensor], prefers: Callable[[Any], bool] = lambda choice: True
) -> tuple[list[FusedKernel | LibraryUnit], dict[Value, torch.Tensor], tuple[Value, ...]]:
    """The units of the compiled function with templates, its inputs, and the bases of its results."""
    with torch.no_grad():
        captured = capture(function, tuple(arguments), {}, "f")
    target = gpu_target(torch.device("cpu"))
    optimized = run_passes(captured.segments[0].graph, check=True, passes=target.passes)
    plan = plan_fusion(optimized, target.limits, target.device)
    units = fuse_templates(lower_units(plan, False), plan.views, optimized, False, prefers)
    given = dict(zip(captured.inputs, captured.given, strict=True))
    known = {value: given[value.id] for value in optimized.inputs}
    return units, {**known, **optimized.constants}, tuple([plan.views.base(value) for value in optimized.outputs])


class Memory:
    """Buffers of the Values of a Graph."""

    def __init__(self, known: dict[Value, torch.Tensor]) -> None:
        self.known = known
        self.made: dict[Value, torch.Tensor] = {}

    def of(self, fused: FusedKernel) -> dict[str, torch.Tensor]:
        return {p.name: self.buffer(value) for value, p in zip(fused.values, fused.kernel.params, strict=True)}

    def buffer(self, value: Value) -> torch.Tensor:
        tensor = self.known.get(value)
        if tensor is not None:
            span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            return tensor.as_strided((span,), (1,))
        return self.made.setdefault(value, torch.full((value.type.numel,), torch.nan).to(value.type.dtype))

    def tensor(self, value: Value) -> torch.Tensor:
        return self.buffer(value).as_strided(value.type.shape, value.type.strides)


def results_of(
    units: Sequence[FusedKernel | LibraryUnit],
    known: dict[Value, torch.Tensor],
    results: Sequence[Value],
    run: Callable[[Kernel, dict[str, torch.Tensor]], None],
) -> list[torch.Tensor]:
    memory = Memory(known)
    for unit in units:
        assert isinstance(unit, FusedKernel), unit.node
        verify_kernel(unit.kernel)
        run(unit.kernel, memory.of(unit))
    return [memory.tensor(value) for value in results]


def emitted(number: int, target: TritonTarget = H100) -> Callable[[Kernel, dict[str, torch.Tensor]], None]:
    """Runs the candidate of this number, or the last one."""

    def run(kernel: Kernel, buffers: dict[str, torch.Tensor]) -> None:
        sources = candidates(kernel, target)
        interpret_source(sources[min(number, len(sources) - 1)], buffers)

    return run


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = f32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple([torch.randn(shape, generator=generator).to(dtype) for shape in shapes])


def exact(function: Function, arguments: Sequence[torch.Tensor]) -> torch.Tensor:
    """In float64, of the rounded arguments."""
    return function(*[a.double() if a.is_floating_point() else a for a in arguments])


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = {f32: 2e-6, bf16: 2**-6, f16: 2**-9}[dtype]
    torch.testing.assert_close(found.double().reshape(expected.shape), expected, rtol=tolerance, atol=2 * tolerance)


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def biased(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3)


def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    i = torch.arange(q.shape[-2])[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(i * 7 + torch.arange(k.shape[-2])) % 3 != 0)


def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return ((q @ k.transpose(-2, -1)) * 0.3).softmax(-1) @ v


def capped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    scores = 5 * torch.tanh(q @ k.transpose(-2, -1) / 5) + bias
    return torch.matmul(torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, f32)).to(v.dtype), v)


def windowed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    i, j = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    scores = (q @ k.transpose(-2, -1)) * 0.3
    return scores.masked_fill((i < j) | (i - j > 9), -torch.inf).softmax(-1) @ v


def heads_of_one_product(x: torch.Tensor) -> torch.Tensor:
    """Operands that are views of one matrix: rows of a head lie apart."""
    q, k, v = (part.view(*x.shape[:2], 2, -1).transpose(1, 2) for part in x.split(x.shape[-1] // 3, -1))
    return F.scaled_dot_product_attention(q, k, v)


SQUARE = ((1, 2, 18, 12),) * 3
CASES: dict[str, tuple[Function, tuple[tuple[int, ...], ...]]] = {
    "plain": (plain, SQUARE),
    "causal": (causal, SQUARE),
    "of other lengths": (plain, ((1, 2, 5, 12), (1, 2, 20, 12), (1, 2, 20, 8))),
    "bias": (biased, (*SQUARE, (18, 18))),
    "bias of each head": (biased, (*SQUARE, (1, 2, 1, 18))),
    "mask": (masked, SQUARE),
    "heads in one matrix": (heads_of_one_product, ((1, 18, 60),)),
    "written out": (written_out, SQUARE),
    "written out, one head": (written_out, ((18, 8), (20, 8), (20, 16))),
    "capped scores and bias": (capped, (*SQUARE, (1, 1, 18, 18))),
    "window": (windowed, SQUARE),
}
"""The function and the shapes of its arguments."""


@pytest.mark.parametrize("dtype", [f32, bf16, f16])
@pytest.mark.parametrize("name", CASES)
def test_attention_equals_float64(name: str, dtype: torch.dtype) -> None:
    function, shapes = CASES[name]
    arguments = drawn(*shapes, dtype=dtype)
    units, known, results = units_of(function, arguments)
    assert sum(isinstance(unit, FusedKernel) and stream_of(unit.kernel) is not None for unit in units) == 1
    expected = exact(function, arguments)
    for run in (*((run_kernel,) if dtype is f32 else ()), emitted(0), emitted(1)):
        close(results_of(units, known, results, run)[0], expected, dtype)


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90", "hip:gfx942"])
@pytest.mark.parametrize("dtype", [f32, bf16])
def test_every_candidate_equals_float64(target: str, dtype: torch.dtype) -> None:
    arguments = drawn(*((1, 1, 150, 20),) * 3, dtype=dtype)
    units, known, results = units_of(causal, arguments)
    (unit,) = units
    assert isinstance(unit, FusedKernel)
    chosen = TritonTarget.parse(target)
    number = len(candidates(unit.kernel, chosen))
    assert number > 1
    for each in range(number):
        close(results_of(units, known, results, emitted(each, chosen))[0], exact(causal, arguments), dtype)


def test_keys_beyond_the_band_are_not_visited() -> None:
    arguments = drawn(*((1, 1, 256, 16),) * 3, dtype=bf16)
    (unit,), _, _ = units_of(causal, arguments)
    assert isinstance(unit, FusedKernel)
    stream = stream_of(unit.kernel)
    assert stream is not None and stream.band is not None
    assert "tl.minimum(y_start + YBLOCK" in candidates(unit.kernel, H100)[0].text


def test_heads_that_share_keys_share_programs() -> None:
    def shared(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v)[0]

    q, k, v = drawn((2, 6, 4, 16), (2, 2, 40, 16), (2, 2, 40, 16))
    units, known, results = units_of(shared, (q, k, v))
    (unit,) = units
    assert isinstance(unit, FusedKernel)
    stream = stream_of(unit.kernel)
    assert stream is not None and [axis.size for axis in stream.rows] == [3, 4]
    expected = plain(q.double(), *[each.double().repeat_interleave(3, 1) for each in (k, v)])
    close(results_of(units, known, results, emitted(0))[0], expected, f32)


@pytest.mark.parametrize("function", [biased, written_out])
def test_rows_of_which_nothing_counts_are_what_eager_makes_of_them(function: Function) -> None:
    q, k, v = drawn(*((1, 1, 20, 16),) * 3)
    if function is biased:
        bias = torch.zeros(20, 20)
        bias[3] = -torch.inf
        arguments: tuple[torch.Tensor, ...] = (q, k, v, bias)
    else:
        q[0, 0, 3] = -torch.inf
        arguments = (q, k.abs(), v)
    units, known, results = units_of(function, arguments)
    for run in (run_kernel, emitted(0)):
        found = results_of(units, known, results, run)[0].reshape(20, 16)
        torch.testing.assert_close(found, function(*arguments).reshape(20, 16), equal_nan=True)


def gradients(
    gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
    logarithm: torch.Tensor, mask: torch.Tensor | None = None, is_causal: bool = False,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    return backward(gradient, q, k, v, out, logarithm, 0.0, is_causal, attn_mask=mask)


@pytest.mark.parametrize("dtype", [f32, bf16])
@pytest.mark.parametrize(
    ("shapes", "is_causal", "has_mask"),
    [
        (((1, 2, 17, 8),) * 3, True, False),
        (((1, 1, 5, 8), (1, 1, 20, 8), (1, 1, 20, 8)), False, False),
        (((1, 1, 17, 8),) * 3, False, True),
    ],
)
def test_gradients_equal_those_of_float64(
    shapes: tuple[tuple[int, ...], ...], is_causal: bool, has_mask: bool, dtype: torch.dtype
) -> None:
    q, k, v = drawn(*shapes, dtype=dtype)
    (gradient,) = drawn(q.shape, dtype=dtype)
    mask = drawn((q.shape[2], k.shape[2]), dtype=dtype)[0] if has_mask else None
    forward = aten._scaled_dot_product_flash_attention_for_cpu.default
    out, logarithm = forward(q, k, v, 0.0, is_causal, attn_mask=mask)
    arguments = (gradient, q, k, v, out, logarithm, *([mask] if mask is not None else []))
    units, known, results = units_of(lambda *given: gradients(*given, is_causal=is_causal), arguments)
    assert len(units) == 3
    leaves = [each.double().requires_grad_() for each in (q, k, v)]
    wide = None if mask is None else mask.double()
    F.scaled_dot_product_attention(*leaves, attn_mask=wide, is_causal=is_causal).backward(gradient.double())
    for run in (*((run_kernel,) if dtype is f32 else ()), emitted(0), emitted(3)):
        for found, leaf in zip(results_of(units, known, results, run), leaves, strict=True):
            assert leaf.grad is not None
            tolerance = 2e-6 if dtype is f32 else 2**-6
            torch.testing.assert_close(found.double(), leaf.grad, rtol=tolerance, atol=4 * tolerance)


def test_the_sums_that_the_forward_keeps_are_eagers() -> None:
    def both(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v, 0.0, True)

    arguments = drawn(*((1, 2, 40, 16),) * 3)
    units, known, results = units_of(both, arguments)
    for found, expected in zip(results_of(units, known, results, emitted(0)), both(*arguments), strict=True):
        torch.testing.assert_close(found, expected)


BY_LIBRARY: dict[str, Function] = {
    "flash": lambda q, k, v: aten._scaled_dot_product_flash_attention.default(q, k, v, 0.0, True)[0],
    "cuDNN": lambda q, k, v: aten._scaled_dot_product_cudnn_attention.default(q, k, v, None, True, 0.0, True)[0],
    "efficient": lambda q, k, v: aten._scaled_dot_product_efficient_attention.default(q, k, v, None, True, 0.0, True)[
        0
    ],
}


@pytest.mark.parametrize(
    ("library", "rows", "kernels"),
    [("flash", 20, True), ("cuDNN", 20, True), ("efficient", 32, True), ("efficient", 20, False)],
)
def test_where_gradients_are_kernels_their_forward_may_be_one(library: str, rows: int, kernels: bool) -> None:
    """Its seeds are then read by nobody. The efficient op gives sums for rows that are a multiple of 32."""

    def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
            return torch.autograd.grad(BY_LIBRARY[library](*leaves).square().sum(), leaves)

    arguments = drawn(*((1, 2, rows, 16),) * 3)
    with gpu_attention():
        expected = step(*arguments)
        units, known, results = units_of(step, arguments)
        alone, _, _ = units_of(step, arguments, lambda choice: "backward" in str(choice.node.op))
        neither, _, _ = units_of(step, arguments, lambda choice: "backward" not in str(choice.node.op))
    count = [sum(isinstance(unit, LibraryUnit) and not unit.view for unit in each) for each in (units, alone, neither)]
    assert count == ([0, 1, 2] if kernels else [2, 2, 2])
    if kernels:
        for found, gradient in zip(results_of(units, known, results, emitted(0)), expected, strict=True):
            torch.testing.assert_close(found, gradient)


LARGE_HEADS = ((64, f32), (128, f32), (128, bf16), (256, bf16))


@pytest.mark.parametrize(
    ("features", "dtype", "target"),
    [(64, bf16, target) for target in KNOWN_TARGETS]
    + [(80, f16, "cuda:sm_90")]
    + [(size, dtype, target) for size, dtype in LARGE_HEADS for target in KNOWN_TARGETS if "cuda" in target],
)
def test_forward_and_gradients_fit_the_target(features: int, dtype: torch.dtype, target: str) -> None:
    chosen = TritonTarget.parse(target)
    q, k, v, out, gradient = drawn(*((1, 16, 512, features),) * 5, dtype=dtype)
    logarithm = torch.zeros(1, 16, 512)
    forward, _, _ = units_of(causal, (q, k, v))
    backward, _, _ = units_of(lambda *given: gradients(*given, is_causal=True), (gradient, q, k, v, out, logarithm))
    for unit in (*forward, *backward):
        assert isinstance(unit, FusedKernel)
        source = candidates(unit.kernel, chosen)[0]
        code = compile_source(source, chosen)
        assert resources(code).spills == 0, source.text
        assert code.shared <= chosen.shared_bytes


def test_a_trained_layer_runs_as_eager_does() -> None:
    """Forward and backward of a program: what the library made, and what Kernels made of the same calls."""
    q, k, v = (each.requires_grad_() for each in drawn(*((1, 2, 20, 16),) * 3))

    def loss(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(causal(q, k, v).square().sum(), (q, k, v))

    captured = capture(loss, (q, k, v), {}, "f")
    graph = captured.segments[0].graph
    order = dict(zip(captured.inputs, captured.given, strict=True))
    driver = InterpretingDriver()
    machine = interpreting_machine(driver)
    expected = loss(q, k, v)
    for autotune in ("off", "model"):
        compilation = compile_gpu_graph(
            graph, "eager", Environment(check=1), machine, StageTimer(), None, autotune=autotune
        )
        found = compilation.program([order[value.id] for value in graph.inputs])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_without_measuring_attention_is_a_kernel_where_that_saves_traffic() -> None:
    arguments = drawn(*SQUARE)
    for function, is_kernel in ((plain, False), (written_out, True), (masked, True)):
        units, _, _ = units_of(function, arguments, saves_traffic)
        assert isinstance(units[0], FusedKernel) is is_kernel


def test_weights_that_something_else_reads_stay_in_memory() -> None:
    def both(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return weights, weights @ v

    units, _, _ = units_of(both, drawn((20, 16), (20, 16), (20, 16)))
    assert len(units) == 3


def test_gradients_of_large_heads_in_exact_float32_are_the_librarys() -> None:
    q, k, v, out, gradient = drawn(*((1, 1, 8, 136),) * 5)
    logarithm = torch.zeros(1, 1, 8)
    units, _, _ = units_of(gradients, (gradient, q, k, v, out, logarithm))
    assert [isinstance(unit, LibraryUnit) for unit in units] == [True]


def test_dropout_and_large_heads_are_the_librarys() -> None:
    def dropped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)

    large = drawn(*((1, 1, 8, 520),) * 3)
    for function, arguments in ((dropped, drawn(*SQUARE)), (plain, large)):
        units, _, _ = units_of(function, arguments)
        assert all(isinstance(unit, LibraryUnit) or stream_of(unit.kernel) is None for unit in units)


def test_kept_rows_are_printed_and_refused_by_other_emitters() -> None:
    (unit,), _, _ = units_of(plain, drawn(*SQUARE))
    assert isinstance(unit, FusedKernel)
    assert "a_product = reduce_sum(q_multiplied, matrix='exact', over=(e))" in print_kernel(unit.kernel)
    with pytest.raises(BackendError, match="keeps rows"):
        emit_kernel(unit.kernel, 132)


def latent(q: torch.Tensor, q_rotary: torch.Tensor, latents: torch.Tensor, k_rotary: torch.Tensor) -> torch.Tensor:
    """Attention to compressed keys and values (DeepSeek-V2, 2024), with what makes them absorbed into the query."""
    scores = torch.einsum("bhc,btc->bht", q, latents) + torch.einsum("bhr,btr->bht", q_rotary, k_rotary)
    return torch.einsum("bht,btc->bhc", (scores * 0.2).softmax(-1), latents)


DECODE: dict[str, tuple[Function, tuple[tuple[int, ...], ...]]] = {
    "one query": (plain, ((1, 2, 1, 8), (1, 2, 512, 8), (1, 2, 512, 8))),
    "of keys that parts do not divide": (plain, ((1, 1, 1, 8), (1, 1, 517, 8), (1, 1, 517, 8))),
    "bias and keys that parts do not divide": (biased, ((1, 1, 2, 8), (1, 1, 517, 8), (1, 1, 517, 8), (2, 517))),
    "latent": (latent, ((1, 3, 16), (1, 3, 8), (1, 514, 16), (1, 514, 8))),
    "written out": (written_out, ((2, 8), (515, 8), (515, 16))),
}


@pytest.mark.parametrize("dtype", [f32, bf16])
@pytest.mark.parametrize("name", DECODE)
def test_few_queries_share_many_keys_among_programs(name: str, dtype: torch.dtype) -> None:
    function, shapes = DECODE[name]
    arguments = drawn(*shapes, dtype=dtype)
    units, known, results = units_of(function, arguments)
    assert [stream_of(unit.kernel) is not None for unit in units if isinstance(unit, FusedKernel)] == [True, False]
    expected = exact(function, arguments)
    for run in (*((run_kernel,) if dtype is f32 else ()), emitted(0), emitted(1)):
        close(results_of(units, known, results, run)[0], expected, dtype)


def test_latents_are_keys_and_values_and_are_loaded_once() -> None:
    arguments = drawn((1, 16, 512), (1, 16, 64), (1, 1024, 512), (1, 1024, 64), dtype=bf16)
    units, _, _ = units_of(latent, arguments)
    first, second = (unit.kernel for unit in units if isinstance(unit, FusedKernel))
    source = candidates(first, H100)[0]
    loop = source.text[source.text.index("for x_start") :]
    assert loop.count("tl.load") == 2 and loop.count("tl.dot") == 3
    for kernel in (first, second):
        code = compile_source(candidates(kernel, H100)[0], H100)
        assert resources(code).spills == 0
        assert code.shared <= H100.shared_bytes


def test_rows_of_which_nothing_counts_in_any_part_are_zero() -> None:
    q, k, v = drawn((1, 1, 2, 8), (1, 1, 512, 8), (1, 1, 512, 8))
    bias = torch.zeros(2, 512)
    bias[0], bias[1, :256] = -torch.inf, -torch.inf
    units, known, results = units_of(biased, (q, k, v, bias))
    assert len(units) == 2
    torch.testing.assert_close(results_of(units, known, results, emitted(0))[0], biased(q, k, v, bias))
