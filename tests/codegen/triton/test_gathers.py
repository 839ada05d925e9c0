"""Loads at places that data decide, and checks: Triton does what the interpreter of Kernels does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dsjit.codegen.triton.compiler import compile_source, resources
from dsjit.codegen.triton.emitter import emit_kernel
from dsjit.codegen.triton.target import TritonTarget
from dsjit.ir.kernel import Kernel
from tests.codegen.kernels import generic, picked_along_rows, picked_rows, picked_totals
from tests.codegen.llvm.test_gathers import EXTENT, inputs, result
from tests.codegen.triton.running import outputs, run_triton

KERNELS = [picked_rows, picked_along_rows, picked_totals]


@pytest.mark.parametrize("columns", [1, 37, 130])
@pytest.mark.parametrize("kernel", KERNELS)
def test_places_in_range(kernel: Callable[..., Kernel], columns: int) -> None:
    made = kernel(19, columns, EXTENT)
    (expected,), (actual,) = outputs(made, inputs(made, 19, columns), [result(made, 19, columns)])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_sizes_that_are_parameters(kernel: Callable[..., Kernel]) -> None:
    made = kernel(7, 35, EXTENT)
    opened, sizes = generic(made, 20)
    results = [result(made, 7, 35)] * 2
    (expected,), _ = outputs(made, inputs(made, 7, 35), results[:1])
    run_triton(opened, *inputs(made, 7, 35), results[1], sizes=sizes)
    torch.testing.assert_close(results[1], expected)


@pytest.mark.parametrize("wrong", [-1, EXTENT])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_place_out_of_range_refuses_the_run(kernel: Callable[..., Kernel], wrong: int) -> None:
    made = kernel(7, 35, EXTENT)
    source, numbers = inputs(made, 7, 35)
    numbers[-1] = wrong
    with pytest.raises(IndexError):
        run_triton(made, source, numbers, result(made, 7, 35))


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90", "cuda:sm_100", "hip:gfx942"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_assertions_are_compiled_and_nothing_spills(kernel: Callable[..., Kernel], target: str) -> None:
    machine = TritonTarget.parse(target)
    code = compile_source(emit_kernel(kernel(300, 700, EXTENT), machine.processors), machine)
    assert resources(code).spills == 0
    assert "an index is out of range" in code.source.text
    if machine.backend == "cuda":
        assert "__assertfail" in code.assembly
