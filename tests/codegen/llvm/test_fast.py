"""Kernels for `numerics="fast"`: what may change, and what may not."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from dsjit.codegen.llvm.emitter import emit_module
from dsjit.codegen.llvm.engine import assembly
from dsjit.codegen.llvm.math import MATH
from dsjit.codegen.llvm.spellings import FAST_SPELLINGS, SPELLINGS
from dsjit.codegen.llvm.target import X86_64_AVX512, host_target
from dsjit.ir.kernel import Apply, Block, Constant, Kernel, Load, Reduce, Store
from dsjit.ir.scalar import SCALAR_OPS
from tests.codegen.kernels import at, axes, pointwise, reads, run_compiled, run_interpreted, softmax, writes

f32, f64 = torch.float32, torch.float64
NUMBERS = (0.0, -0.0, 1.0, -1.5, 3.25, 0.125, -4096.0, float("inf"), -float("inf"), float("nan"))
"""Few significant bits: sums and products of three are exact, whichever comes first."""


def of_three(size, *ops, dtype=f32):
    """y = what `ops` make of the inputs a, b and c; the last one is y."""
    here = at(i0=1)
    loads = [Load(name, f"{name}s", here, dtype) for name in "abc"]
    params = reads("as", "bs", "cs", dtype=dtype) + writes("y", dtype=dtype)
    return pointwise(size, (*loads, *ops, Store("y", here, ops[-1].result)), params)


def scaled_twice(size):
    first, second = Constant("five", 5.0, f32), Constant("three", 3.0, f32)
    return of_three(size, first, second, Apply("p", "mul", ("a", "five"), f32), Apply("q", "mul", ("p", "three"), f32))


def dot_products(rows, columns):
    here = at(i0=columns, i1=1)
    body = (
        Load("a", "x", here, f32),
        Load("b", "y", here, f32),
        Apply("c", "mul", ("a", "b"), f32),
        Reduce("r", "sum", "c", f32),
    )
    blocks = (Block(axes(columns, first=1), body), Block((), (Store("z", at(i0=1), "r"),)))
    return Kernel("dot", reads("x", "y") + writes("z"), axes(rows), blocks, "i1")


def compiled(kernel, inputs, fast):
    y = torch.zeros_like(inputs[0])
    run_compiled(kernel, *inputs, y, fast=fast)
    return y


@pytest.mark.skipif(not host_target().has_fma, reason="this machine rounds products in any case")
@pytest.mark.parametrize("dtype", [f32, f64])
def test_products_that_are_added_are_not_rounded(dtype):
    inputs = [torch.randn(100, dtype=dtype) for _ in range(3)]
    apart = of_three(100, Apply("p", "mul", ("a", "b"), dtype), Apply("s", "add", ("p", "c"), dtype), dtype=dtype)
    once, twice = torch.zeros(100, dtype=dtype), torch.zeros(100, dtype=dtype)
    run_interpreted(of_three(100, Apply("s", "fma", ("a", "b", "c"), dtype), dtype=dtype), *inputs, once)
    run_interpreted(apart, *inputs, twice)
    assert torch.equal(compiled(apart, inputs, fast=True), once)
    assert torch.equal(compiled(apart, inputs, fast=False), twice)
    assert not torch.equal(once, twice)


def test_sums_of_products_are_multiply_adds():
    text = {fast: assembly(emit_module([dot_products(4, 256)], X86_64_AVX512, fast), X86_64_AVX512) for fast in (0, 1)}
    assert "vfmadd" not in text[False]
    assert "vfmadd" in text[True]


def test_constants_are_combined():
    text = {fast: assembly(emit_module([scaled_twice(64)], X86_64_AVX512, fast), X86_64_AVX512) for fast in (0, 1)}
    assert text[False].count("vmulps") == text[True].count("vmulps") * 2
    inputs = [torch.randn(64) for _ in range(3)]
    torch.testing.assert_close(compiled(scaled_twice(64), inputs, fast=True), inputs[0] * 15)


@pytest.mark.parametrize(
    "ops",
    [
        (Apply("p", "mul", ("a", "b"), f32), Apply("s", "add", ("p", "c"), f32)),
        (Apply("p", "add", ("a", "b"), f32), Apply("s", "sub", ("p", "a"), f32)),
        (Apply("p", "sub", ("a", "b"), f32), Apply("s", "mul", ("p", "c"), f32)),
        (Apply("p", "div", ("a", "b"), f32), Apply("s", "div", ("c", "b"), f32), Apply("t", "add", ("p", "s"), f32)),
        (Apply("p", "sqrt", ("b",), f32), Apply("s", "div", ("a", "p"), f32)),
        (Apply("p", "mul", ("a", "b"), f32), Apply("s", "mul", ("a", "c"), f32), Apply("t", "sub", ("p", "s"), f32)),
    ],
    ids=lambda ops: "-".join(op.op for op in ops),
)
def test_nan_and_infinities_keep_their_meaning(ops):
    inputs = [torch.tensor(column) for column in zip(*itertools.product(NUMBERS, repeat=3), strict=True)]
    kernel = of_three(len(inputs[0]), *ops)
    fast, exact = compiled(kernel, inputs, fast=True), compiled(kernel, inputs, fast=False)
    torch.testing.assert_close(fast, exact, equal_nan=True, rtol=1e-6, atol=1e-6)


def test_no_flag_says_that_numbers_are_finite_or_have_reciprocals():
    text = emit_module([softmax(2, 64), scaled_twice(64)], host_target(), fast=True)
    assert set(re.findall(r"\b(fast|contract|reassoc|nnan|ninf|nsz|arcp|afn)\b", text)) == {"contract", "reassoc"}


@pytest.mark.parametrize("op", [op for op in sorted(MATH) if SCALAR_OPS[op].arity == 1])
def test_vector_math_is_the_same(op):
    kernel = of_three(64, Apply("y", op, ("a",), f32))
    assert emit_module([kernel], host_target(), fast=True) == emit_module([kernel], host_target())


def test_every_op_has_a_spelling_in_both():
    assert FAST_SPELLINGS.keys() == SPELLINGS.keys()
