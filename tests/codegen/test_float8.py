"""Numbers of float8 are read, converted and written in kernels, to the bit as eager converts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import dsjit
from dsjit.codegen.triton.target import KNOWN_TARGETS
from tests.api.checks import call_compiled, counters_of

FORMATS = [torch.float8_e4m3fn, torch.float8_e5m2]
OTHERS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BACKENDS = ["llvm", "triton-interpret", "interpreter"]


def every_number(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype)


def telling_numbers(dtype: torch.dtype) -> torch.Tensor:
    """Each number of the format, halves of the ways to its neighbours, what lies beside those, and what is beyond."""
    exact = every_number(dtype).float()
    exact = exact[exact.isfinite()].sort().values.unique()
    halves = (exact[1:] + exact[:-1]) / 2
    infinity = torch.tensor(torch.inf)
    beside = [halves.nextafter(infinity), halves.nextafter(-infinity), exact.nextafter(infinity)]
    largest = exact[-1]
    beyond = largest * torch.tensor([1.02, 1.03, 1.0357143, 1.04, 1.07, 1.0714286, 1.08, 1.2, 2.0, 1e4, torch.inf])
    tiny = exact[exact > 0][0] * torch.tensor([0.1, 0.49, 0.5, 0.51, 1e-30, 1e-42])
    special = torch.tensor([torch.nan, 0.0, -0.0])
    return torch.cat([exact, halves, *beside, beyond, -beyond, tiny, -tiny, special])


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


def assert_same_numbers(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To the bit, but for which NaN it is."""
    assert found.dtype is expected.dtype
    nan = expected.float().isnan()
    assert torch.equal(found.float().isnan(), nan)
    assert torch.equal(bits(found)[~nan], bits(expected)[~nan])


def compiled(function: Callable[..., torch.Tensor], backend: str, *args: torch.Tensor) -> torch.Tensor:
    call = dsjit.jit(function, backend=backend, fullgraph=True)
    call(*args)
    result: torch.Tensor = call_compiled(call, *args)
    assert counters_of(call).ops_in_library == 0
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("to", OTHERS)
@pytest.mark.parametrize("dtype", FORMATS)
def test_every_number_is_read(dtype: torch.dtype, to: torch.dtype, backend: str) -> None:
    x = every_number(dtype)
    assert_same_numbers(compiled(lambda t: t.to(to), backend, x), x.to(to))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FORMATS)
def test_numbers_are_rounded_as_in_eager(dtype: torch.dtype, backend: str) -> None:
    x = telling_numbers(dtype)
    assert_same_numbers(compiled(lambda t: t.to(dtype), backend, x), x.to(dtype))


@pytest.mark.parametrize("source", [torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.bool, *FORMATS])
@pytest.mark.parametrize("dtype", FORMATS)
def test_other_dtypes_are_rounded_as_in_eager(dtype: torch.dtype, source: torch.dtype) -> None:
    numbers = telling_numbers(dtype)
    x = numbers.to(source) if source.is_floating_point else torch.arange(-600, 600).to(source)
    assert_same_numbers(compiled(lambda t: t.to(dtype), "llvm", x), x.to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scaling_and_rounding_are_one_kernel(backend: str) -> None:
    def quantized(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn)

    x, scale = torch.randn(5, 24) * 100, torch.rand(5, 1) + 0.1
    assert_same_numbers(compiled(quantized, backend, x, scale), quantized(x, scale))
    assert len(dsjit.explain(quantized)(x, scale).kernels) == 1


@pytest.mark.parametrize("numerics", ["eager", "fast"])
@pytest.mark.parametrize("dtype", FORMATS)
def test_rounding_and_back_again_is_not_undone(dtype: torch.dtype, numerics: str) -> None:
    def rounded(x: torch.Tensor) -> torch.Tensor:
        return (x * 1.5).to(dtype).float() - x

    x = torch.randn(999)
    call = dsjit.jit(rounded, numerics=numerics)
    call(x)
    assert torch.equal(call_compiled(call, x), rounded(x))


def test_windows_and_turned_numbers_are_read_where_they_are() -> None:
    x = every_number(torch.float8_e5m2).view(16, 16)
    assert_same_numbers(compiled(lambda t: t.t()[2:9, ::3].float(), "llvm", x), x.t()[2:9, ::3].float())


@pytest.mark.parametrize("target", KNOWN_TARGETS)
@pytest.mark.parametrize("dtype", FORMATS)
def test_every_gpu_has_kernels_for_them(dtype: torch.dtype, target: str) -> None:
    x = torch.randn(1024).to(dtype)
    found = dsjit.compile_for(lambda t: (t.float() * 2).to(dtype), (x,), target=target)
    (kernel,) = found.kernels
    assert kernel.resources.spills == 0
