"""Conversions between dtypes in LLVM IR give what eager gives, and so does the interpreter."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dsjit.ir.dtypes import KERNEL_DTYPES, is_floating, short_name
from dsjit.ir.kernel import Cast, Load, Param, Stmt, Store
from tests.codegen.kernels import at, outputs, pointwise, reads, run_compiled, writes

DTYPES = sorted(KERNEL_DTYPES, key=short_name)


def values(dtype: torch.dtype) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.tensor([False, True])
    if not is_floating(dtype):
        info = torch.iinfo(dtype)
        numbers = [0, 1, 2, 3, 100, 127, info.max, info.max - 1, info.min, info.max // 2 + 1, 16777217, 65519, 257]
        return torch.tensor([min(max(number, info.min), info.max) for number in numbers], dtype=dtype)
    return torch.tensor(
        [
            0.0, -0.0, 0.5, -0.5, 0.99, -0.99, 1.5, 2.5, 255.5, 256.0, -1.0, 300.7, -300.7, 32768.0, 65519.0, 65520.0,
            70000.0, 2147483520.0, 2147483648.0, -2147483648.0, -2147483904.0, 3e9, 4294967296.5, 1e10, -1e10, 9.2e18,
            9.3e18, -9.3e18, 1e20, -1e20, 1e-40, 1e-45, -1e-40, 6e-8, 1.00390625, 1.01171875, 3.4e38, math.pi,
            math.inf, -math.inf, math.nan,
        ],
        dtype=torch.float64,
    ).to(dtype)  # fmt: skip


@pytest.mark.parametrize("source", DTYPES, ids=short_name)
def test_casts_equal_eager_and_the_interpreter(source):
    x = values(source)
    body: list[Stmt] = [Load("a", "x", at(i0=1), source)]
    params: list[Param] = [*reads("x", dtype=source)]
    for to in DTYPES:
        name = f"y_{short_name(to)}"
        body += [Cast(f"c_{name}", "a", to), Store(name, at(i0=1), f"c_{name}")]
        params += writes(name, dtype=to)
    kernel = pointwise(len(x), body, params)
    interpreted, compiled = outputs(kernel, [x], [torch.zeros(len(x), dtype=to) for to in DTYPES])
    for to, expected, actual in zip(DTYPES, interpreted, compiled, strict=True):
        eager = x.to(to)
        torch.testing.assert_close(expected, eager, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(actual, eager, rtol=0, atol=0, equal_nan=True)


def test_every_bfloat16_survives_a_round_trip_through_float32():
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.bfloat16)
    body = (
        Load("a", "x", at(i0=1), torch.bfloat16),
        Cast("b", "a", torch.float32),
        Cast("c", "b", torch.bfloat16),
        Store("y", at(i0=1), "c"),
    )
    y = torch.zeros_like(x)
    params = reads("x", dtype=torch.bfloat16) + writes("y", dtype=torch.bfloat16)
    run_compiled(pointwise(65536, body, params), x, y)
    numbers = ~x.isnan()
    assert torch.equal(y.view(torch.int16)[numbers], bits[numbers])
    assert y[~numbers].isnan().all()


def test_rounding_to_bfloat16_is_to_nearest_even_for_denormals_too():
    kept, cut = (0, 1, 2, 0x80, 0x3F80, 0x7F7F), (0x7FFF, 0x8000, 0x8001)
    patterns = [high << 16 | low for high, low in itertools.product(kept, cut)]
    x = torch.tensor(patterns, dtype=torch.int32).view(torch.float32)
    body = (
        Load("a", "x", at(i0=1), torch.float32),
        Cast("b", "a", torch.bfloat16),
        Store("y", at(i0=1), "b"),
    )
    y = torch.zeros(len(x), dtype=torch.bfloat16)
    run_compiled(pointwise(len(x), body, reads("x") + writes("y", dtype=torch.bfloat16)), x, y)
    assert torch.equal(y.view(torch.int16), x.to(torch.bfloat16).view(torch.int16))
