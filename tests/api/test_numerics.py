"""The option `numerics`: "eager" rounds where eager rounds, "fast" has leave not to."""

from __future__ import annotations

import pytest
import torch

import dsjit
from dsjit.api.entry import jitted_of
from tests.api.checks import assert_same, call_compiled


def chain(x, y):
    return torch.sigmoid(x) * torch.tanh(y) + x * 0.1 - y


def compiled(function, *args, **options):
    """The second call, and the program that ran it."""
    jitted = dsjit.jit(function, **options)
    jitted(*args)
    result = call_compiled(jitted, *args)
    (program,) = jitted_of(jitted).compilations
    return result, program


def pair(dtype, size=4096):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator).to(dtype) for _ in range(2)]


def error(result, inputs):
    exact = chain(*(x.double() for x in inputs))
    return (result.double() - exact).square().mean().sqrt()


@pytest.mark.parametrize("backend", ["llvm", "interpreter"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fast_rounds_narrow_numbers_once_a_kernel(dtype, backend):
    inputs = pair(dtype, 256)
    result, program = compiled(chain, *inputs, numerics="fast", backend=backend)
    assert len(program.kernels) == 1
    once = chain(*(x.float() for x in inputs)).to(dtype)
    assert_same(result, once)
    assert error(result, inputs) < 1.01 * error(once, inputs) < error(chain(*inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_eager_has_the_bits_of_every_rounding(dtype):
    inputs = pair(dtype)
    result, _ = compiled(lambda x, y: (x * y + x) * 3 - y, *inputs)
    x, y = inputs
    assert torch.equal(result, (x * y + x) * 3 - y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fast_is_within_the_tolerance_of_the_dtype(dtype):
    inputs = pair(dtype)
    result, _ = compiled(chain, *inputs, numerics="fast")
    assert_same(result, chain(*inputs))


def test_the_two_share_neither_programs_nor_kernels():
    inputs = pair(torch.float32)
    _, eager = compiled(chain, *inputs)
    _, fast = compiled(chain, *inputs, numerics="fast")
    assert eager is not fast
    addresses = [{kernel.address for kernel in program.kernels.values()} for program in (eager, fast)]
    assert not addresses[0] & addresses[1]
    assert compiled(chain, *inputs)[1] is eager
    assert compiled(chain, *inputs, numerics="fast")[1] is fast


def test_what_fast_does_to_one_function_does_not_reach_another():
    inputs = pair(torch.bfloat16)
    before, _ = compiled(chain, *inputs)
    compiled(chain, *inputs, numerics="fast")
    after, _ = compiled(chain, *inputs)
    assert torch.equal(before, after)


@pytest.mark.parametrize("numerics", ["eager", "fast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinities_are_where_eager_has_them(dtype, numerics):
    special = torch.tensor([0.0, -0.0, 1.0, -2.0, float("inf"), -float("inf"), float("nan")], dtype=dtype)
    x, y = (t.reshape(-1) for t in torch.meshgrid(special, special, indexing="ij"))

    def function(x, y):
        return x * y + y, (x - y) / y, torch.rsqrt(x) * y, torch.softmax(x.view(7, 7), 1)

    result, _ = compiled(function, x, y, numerics=numerics)
    assert_same(result, function(x, y))
