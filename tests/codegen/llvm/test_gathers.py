"""Loads at places that data decide, and checks: machine code does what the interpreter of Kernels does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dsjit.codegen.llvm.target import Target, host_target
from dsjit.ir.kernel import Kernel
from tests.codegen.kernels import (
    generic,
    outputs,
    picked_along_rows,
    picked_rows,
    picked_totals,
    run_compiled,
    run_interpreted,
)

EXTENT = 23
NARROWER = replace(host_target(), vector_bytes=32)
TARGETS = {"registers of this machine": host_target(), "registers of 32 bytes, without gathers": NARROWER}


def inputs(kernel: Kernel, rows: int, columns: int) -> list[torch.Tensor]:
    """The source, and numbers of places, of which there are `EXTENT`."""
    generator = torch.Generator().manual_seed(columns)
    size = EXTENT * max(rows, columns)
    source = torch.randn(size, generator=generator) * 9
    count = rows if kernel.name == "picked_rows" else rows * columns
    return [source.to(kernel.params[0].dtype), torch.randint(0, EXTENT, (count,), generator=generator)]


def result(kernel: Kernel, rows: int, columns: int) -> torch.Tensor:
    return torch.zeros(rows if kernel.name == "picked_totals" else rows * columns, dtype=kernel.params[-1].dtype)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("columns", [1, 3, 16, 37, 130])
@pytest.mark.parametrize("kernel", [picked_rows, picked_along_rows, picked_totals])
def test_places_in_range(kernel: Callable[..., Kernel], columns: int, target: Target) -> None:
    rows = 19
    made = kernel(rows, columns, EXTENT)
    (expected,), (actual,) = outputs(made, inputs(made, rows, columns), [result(made, rows, columns)], target=target)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.bool])
@pytest.mark.parametrize("kernel", [picked_rows, picked_along_rows])
def test_elements_of_any_width(kernel: Callable[..., Kernel], dtype: torch.dtype) -> None:
    made = kernel(5, 41, EXTENT, dtype)
    expected, actual = outputs(made, inputs(made, 5, 41), [result(made, 5, 41)])
    assert torch.equal(actual[0], expected[0])


@pytest.mark.parametrize("wrong", [-1, EXTENT, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("position", [0, -1])
@pytest.mark.parametrize("kernel", [picked_rows, picked_along_rows, picked_totals])
def test_a_place_out_of_range_refuses_the_run(kernel: Callable[..., Kernel], position: int, wrong: int) -> None:
    made = kernel(7, 35, EXTENT)
    source, numbers = inputs(made, 7, 35)
    numbers[position] = wrong
    for run in (run_interpreted, run_compiled):
        with pytest.raises(IndexError):
            run(made, source, numbers, result(made, 7, 35))


@pytest.mark.parametrize("kernel", [picked_rows, picked_along_rows, picked_totals])
def test_sizes_that_are_parameters(kernel: Callable[..., Kernel]) -> None:
    made = kernel(7, 35, EXTENT)
    opened, sizes = generic(made, 20)
    results = [result(made, 7, 35)] * 2
    (expected,), (actual,) = outputs(made, inputs(made, 7, 35), results[:1])
    run_compiled(opened, *inputs(made, 7, 35), results[1], sizes=sizes, pieces=3)
    torch.testing.assert_close(results[1], expected)
    torch.testing.assert_close(actual, expected)
