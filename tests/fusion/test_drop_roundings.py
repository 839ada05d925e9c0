"""Between the ops of a Kernel, bfloat16 and float16 values stay in float32 (`numerics="fast"`)."""

from __future__ import annotations

import sys

import pytest
import torch

from dsjit.fusion.drop_roundings import drop_roundings
from dsjit.ir.kernel import Apply, Block, Cast, Kernel, Load, Reduce, Store
from dsjit.ir.print_kernel import print_kernel
from dsjit.ir.verify_kernel import verify_kernel
from tests.codegen.kernels import at, axes, pointwise, reads, run_interpreted, writes
from tests.graphs import example

f32, f64, bf16, f16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def kernel_of(*steps, dtype=bf16, size=64, name="scaled"):
    """y = what `steps` make of `a`, an element of x; the last one is y."""
    body = (Load("a", "x", at(i0=1), dtype), *steps, Store("y", at(i0=1), steps[-1].result))
    whole = pointwise(size, body, reads("x", dtype=dtype) + writes("y", dtype=steps[-1].dtype))
    return Kernel(name, whole.params, whole.outer, whole.blocks, whole.vector_axis)


def squared_then_exp(dtype):
    return kernel_of(
        Cast("b", "a", f32), Apply("c", "mul", ("b", "b"), f32), Cast("d", "c", dtype), Cast("e", "d", f32),
        Apply("f", "exp", ("e",), f32), Cast("g", "f", dtype), dtype=dtype,
    )  # fmt: skip


def rewritten(kernel):
    result = drop_roundings(kernel)
    verify_kernel(result)
    return result


def casts(kernel):
    return [s.dtype for block in kernel.blocks for s in block.body if isinstance(s, Cast)]


def test_example_of_the_docstring():
    before, after = example(sys.modules[drop_roundings.__module__].__doc__)
    kernel = squared_then_exp(bf16)
    assert print_kernel(kernel).strip() == before.strip()
    assert print_kernel(rewritten(kernel)).strip() == after.strip()


@pytest.mark.parametrize("dtype", [bf16, f16])
def test_what_is_stored_is_rounded_once(dtype):
    x, y = torch.linspace(-2, 2, 64).to(dtype), torch.zeros(64, dtype=dtype)
    run_interpreted(rewritten(squared_then_exp(dtype)), x, y)
    wide = x.float()
    assert torch.equal(y, (wide * wide).exp().to(dtype))


def test_a_rounded_value_that_is_also_stored_stays():
    kernel = kernel_of(
        Cast("b", "a", f32), Apply("c", "mul", ("b", "b"), f32), Cast("d", "c", bf16), Store("x", at(i0=1), "d"),
        Cast("e", "d", f32), Apply("f", "exp", ("e",), f32),
    )  # fmt: skip
    assert casts(drop_roundings(kernel)) == [f32, bf16]


def test_several_roundings_in_a_row_go_together():
    kernel = kernel_of(
        Cast("b", "a", f32), Apply("c", "mul", ("b", "b"), f32), Cast("d", "c", bf16), Cast("e", "d", f32),
        Cast("f", "e", f16), Cast("g", "f", f32), Apply("h", "exp", ("g",), f32),
    )  # fmt: skip
    assert casts(rewritten(kernel)) == [f32]


def test_results_of_reductions_go_on_unrounded_to_later_blocks():
    here = at(i0=8, i1=1)
    row = axes(8, first=1)
    blocks = (
        Block(row, (Load("a", "x", here, bf16), Cast("b", "a", f32), Reduce("r", "sum", "b", f32))),
        Block((), (Cast("s", "r", bf16), Cast("t", "s", f32))),
        Block(row, (Load("c", "x", here, bf16), Cast("d", "c", f32), Apply("e", "div", ("d", "t"), f32),
                    Cast("f", "e", bf16), Store("y", here, "f"))),
    )  # fmt: skip
    kernel = Kernel("share", reads("x", dtype=bf16) + writes("y", dtype=bf16), axes(4), blocks, "i1")
    x, y = torch.rand(4, 8).to(bf16), torch.zeros(4, 8, dtype=bf16)
    run_interpreted(rewritten(kernel), x, y)
    assert torch.equal(y, (x.float() / x.float().sum(1, keepdim=True)).to(bf16))


@pytest.mark.parametrize(
    "steps",
    [
        (Cast("b", "a", f32), Apply("c", "exp", ("b",), f32)),
        (Cast("b", "a", f32), Cast("c", "b", f64), Apply("d", "exp", ("c",), f64), Cast("e", "d", f32)),
        (Cast("b", "a", f64), Apply("c", "exp", ("b",), f64), Cast("d", "c", bf16), Cast("e", "d", f32)),
        (Cast("b", "a", f32), Cast("c", "b", torch.int64), Cast("d", "c", f32)),
    ],
    ids=["loaded", "to float64", "from float64", "to integers"],
)
def test_other_conversions_stay(steps):
    kernel = kernel_of(*steps)
    assert drop_roundings(kernel) is kernel
