"""Random small Kernels: Triton leaves in memory, bit for bit, what the interpreter leaves."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.codegen.kernels import generic, run_interpreted
from tests.codegen.llvm.test_random_kernels import kernels
from tests.codegen.triton.running import run_triton

QUIET = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def random_buffers(kernel, extents, seed):
    """Small whole numbers, so that sums are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-4, 5, (extents[p.name],), generator=generator).to(p.dtype) for p in kernel.params]


def check_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@QUIET
@given(kernels(), st.integers(0, 2**32 - 1))
def test_triton_equals_the_interpreter(case, seed):
    kernel, extents = case
    buffers = random_buffers(kernel, extents, seed)
    expected, found = ([buffer.clone() for buffer in buffers] for _ in range(2))
    run_interpreted(kernel, *expected)
    run_triton(kernel, *found)
    check_equal(found, expected)


@QUIET
@given(kernels(), st.integers(0, 2**32 - 1), st.sampled_from([3, 64, 100_000]))
def test_a_kernel_for_any_size_equals_the_one_for_this_size(case, seed, typical):
    kernel, extents = case
    buffers = random_buffers(kernel, extents, seed)
    expected, found = ([buffer.clone() for buffer in buffers] for _ in range(2))
    run_interpreted(kernel, *expected)
    any_size, sizes = generic(kernel, typical)
    run_triton(any_size, *found, sizes=sizes)
    check_equal(found, expected)
