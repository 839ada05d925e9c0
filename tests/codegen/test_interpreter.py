"""The interpreter's own numbers, against ATen, exact arithmetic and the Kernel IR's rules."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from dsjit.codegen.interpreter import INTERPRETED, cast_scalar, run_kernel
from dsjit.ir.kernel import Cast, Constant, IndexValue, InRange, Load, Reduce, Store
from dsjit.ir.scalar import SCALAR_OPS
from tests.codegen.kernels import at, layer_norm, pointwise, reads, row_reduce, run_interpreted, softmax, writes

f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16


def test_every_scalar_op_is_interpreted():
    assert set(INTERPRETED) == set(SCALAR_OPS)


@pytest.mark.parametrize("op", ["exp", "log", "tanh", "sigmoid", "erf", "sin", "log1p", "expm1", "lgamma"])
def test_float32_transcendentals_are_within_one_ulp_of_float64(op):
    function = getattr(torch, op)
    for x in (1e-20, 0.3, 0.7, 2.5, 11.0):
        exact = function(torch.tensor(x, dtype=f32).double()).float().item()
        assert INTERPRETED[op](np.float32(x)) == np.float32(exact)


@pytest.mark.parametrize("op", ["maximum", "minimum"])
def test_extremes_propagate_a_nan_from_either_side(op):
    nan, one = np.float32("nan"), np.float32(1)
    assert np.isnan(INTERPRETED[op](nan, one))
    assert np.isnan(INTERPRETED[op](one, nan))


@pytest.mark.parametrize(("op", "aten"), [("fmax", torch.fmax), ("fmin", torch.fmin)])
def test_fmax_and_fmin_ignore_a_nan_and_keep_the_first_zero(op, aten):
    for a, b in ((math.nan, 1.0), (1.0, math.nan), (0.0, -0.0), (-0.0, 0.0), (2.0, 3.0)):
        expected = aten(torch.tensor(a), torch.tensor(b)).item()
        actual = INTERPRETED[op](np.float32(a), np.float32(b))
        assert (actual == expected) and np.signbit(actual) == (math.copysign(1, expected) < 0)


def test_fma_rounds_once():
    a = np.float32(1 + 2**-12)
    c = np.float32(-1 - 2**-11)
    assert INTERPRETED["fma"](a, a, c) == np.float32(2**-24)
    assert np.float32(a * a) + c == 0


def test_fma_of_an_infinite_addend_is_that_infinity():
    big = np.float64(1e300)
    assert INTERPRETED["fma"](big, big, np.float64("-inf")) == -math.inf


@pytest.mark.parametrize(("op", "aten"), [("shl", torch.bitwise_left_shift), ("shr", torch.bitwise_right_shift)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.uint8])
def test_shifts_by_too_many_places_are_as_in_aten(op, aten, dtype):
    for a in (-128, -1, 1, 127) if dtype.is_signed else (1, 255):
        for places in (0, 1, 7, 8, 31, 32, 100) + ((-1,) if dtype.is_signed else ()):
            x, y = torch.tensor([a], dtype=dtype), torch.tensor([places], dtype=dtype)
            assert INTERPRETED[op](x.numpy()[0], y.numpy()[0]) == aten(x, y).item()


@pytest.mark.parametrize("to", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, bf16, f16, torch.bool])
def test_casts_are_as_in_aten(to):
    for x in (0.0, -0.5, 1.00390625, 300.7, -1e10, 1e20, 65519.9, 65520.0, 1e-40, math.inf, math.nan):
        expected = torch.tensor([x], dtype=f32).to(to)
        actual = torch.tensor([float(cast_scalar(np.float32(x), to))], dtype=torch.float64).to(expected.dtype)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_double_to_bfloat16_rounds_by_way_of_float32():
    x = 1 + 2**-8 + 2**-40
    assert cast_scalar(np.float64(x), bf16) == torch.tensor(x, dtype=torch.float64).to(bf16).item() == 1.0


def test_bfloat16_buffers_are_read_and_written_as_bits():
    x = torch.tensor([1.5, -0.0, 3e38, 1e-40, float("inf")], dtype=bf16)
    bits = np.zeros(5, dtype=np.uint16)
    body = (Load("a", "x", at(i0=1), bf16), Store("y", at(i0=1), "a"))
    kernel = pointwise(5, body, reads("x", dtype=bf16) + writes("y", dtype=bf16))
    run_kernel(kernel, {"x": x, "y": bits})
    assert torch.equal(torch.from_numpy(bits.view(np.int16)), x.view(torch.int16))


def test_float_sums_are_exactly_rounded():
    x = torch.tensor([[1e8, 1.0, -1e8, 1e-8] * 10])
    y = torch.zeros(1)
    run_interpreted(row_reduce("sum", 1, 40), x, y)
    assert y.item() == np.float32(float(sum((Fraction(v) for v in x.view(-1).tolist()), Fraction(0))))


@pytest.mark.parametrize(("values", "expected"), [([math.inf, 1.0], math.inf), ([math.inf, -math.inf], math.nan)])
def test_sums_with_infinities_follow_ieee(values, expected):
    y = torch.zeros(1)
    run_interpreted(row_reduce("sum", 1, 2), torch.tensor(values), y)
    torch.testing.assert_close(y, torch.tensor([expected]), equal_nan=True)


def test_integer_sums_wrap():
    x = torch.full((2,), 2**62, dtype=torch.int64)
    y = torch.zeros(1, dtype=torch.int64)
    run_interpreted(row_reduce("sum", 1, 2, torch.int64), x, y)
    assert y.item() == -(2**63)


@pytest.mark.parametrize(("kind", "expected"), [("argmax", 1), ("argmin", 1)])
def test_the_first_nan_is_the_extreme_element(kind, expected):
    y = torch.zeros(1, dtype=torch.int64)
    run_interpreted(row_reduce(kind, 1, 4), torch.tensor([3.0, math.nan, 9.0, math.nan]), y)
    assert y.item() == expected


def test_masked_loads_touch_only_what_the_mask_allows():
    body = (
        InRange("inside", at(-2, i0=1), 0, 3),
        Load("a", "x", at(-2, i0=1), f32, mask="inside", other=-1.0),
        Store("y", at(i0=1), "a"),
    )
    y = torch.zeros(8)
    run_interpreted(pointwise(8, body, reads("x") + writes("y")), torch.tensor([5.0, 6.0, 7.0]), y)
    assert y.tolist() == [-1, -1, 5, 6, 7, -1, -1, -1]


def test_a_load_outside_of_its_buffer_is_an_error():
    body = (Load("a", "x", at(-1, i0=1), f32), Store("y", at(i0=1), "a"))
    with pytest.raises(IndexError, match=r"x\[-1\]"):
        run_interpreted(pointwise(2, body, reads("x") + writes("y")), torch.zeros(2), torch.zeros(2))


def test_offsets_say_where_index_zero_lies():
    body = (Load("a", "x", at(i0=-1), f32), Store("y", at(i0=1), "a"))
    y = torch.zeros(3)
    kernel = pointwise(3, body, reads("x") + writes("y"))
    run_kernel(kernel, {"x": torch.tensor([1.0, 2.0, 3.0]), "y": y}, {"x": 2})
    assert y.tolist() == [3, 2, 1]


def test_an_index_value_is_the_affine_form_itself():
    body = (IndexValue("i", at(5, i0=-2)), Store("y", at(i0=1), "i"))
    y = torch.zeros(3, dtype=torch.int64)
    run_interpreted(pointwise(3, body, writes("y", dtype=torch.int64)), y)
    assert y.tolist() == [5, 3, 1]


def test_a_constant_is_rounded_to_its_dtype():
    body = (Constant("c", 0.1, f32), Cast("d", "c", torch.float64), Store("y", at(i0=1), "d"))
    y = torch.zeros(1, dtype=torch.float64)
    run_interpreted(pointwise(1, body, writes("y", dtype=torch.float64)), y)
    assert y.item() == float(np.float32(0.1))


def test_a_reduction_in_a_block_without_axes_is_of_one_element():
    kernel = row_reduce("sum", 2, 1)
    (loop, store) = kernel.blocks
    (load, reduce) = loop.body
    assert isinstance(reduce, Reduce)
    x, y = torch.tensor([4.0, 5.0]), torch.zeros(2)
    run_interpreted(kernel, x, y)
    assert y.tolist() == x.tolist()
    assert isinstance(load, Load) and isinstance(store.body[0], Store)


def test_softmax_and_layer_norm_are_those_of_torch():
    x, weight, bias = torch.randn(3, 17), torch.randn(17), torch.randn(17)
    y, mean = torch.zeros(3, 17), torch.zeros(3)
    run_interpreted(softmax(3, 17), x, y)
    torch.testing.assert_close(y, x.softmax(-1))
    run_interpreted(layer_norm(3, 17), x, weight, bias, y, mean)
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (17,), weight, bias))
    torch.testing.assert_close(mean, x.mean(-1))
