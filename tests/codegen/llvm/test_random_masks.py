"""Masks that machine code draws are torch's, and so is the state that it leaves the generator in."""

from __future__ import annotations

import threading

import numpy
import pytest
import torch

from dsjit.codegen.llvm import random_masks
from dsjit.codegen.llvm.engine import assembly
from dsjit.codegen.llvm.random_masks import (
    WORDS,
    NativeMasks,
    draw_mask_natively,
    emit_draw_mask,
    native_masks,
)
from dsjit.codegen.llvm.target import AARCH64_NEON, X86_64_AVX2, X86_64_AVX512, X86_64_SSE2, host_target
from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.ops.masks import draw_mask

LARGE = 5000
"""Elements, of a mask that is worth machine code."""


@pytest.fixture(autouse=True)
def generator():
    state = generator_state()
    yield
    set_generator_state(state)


@pytest.fixture(scope="module")
def native():
    """The machine code, whether or not torch draws as it does on this machine."""
    return NativeMasks(host_target())


def by_numpy(state, count, probability):
    """The mask by numpy's Mersenne twister from a generator's state, and its words and the number of the next one."""
    words = numpy.frombuffer(state.numpy().tobytes()[24:], dtype=numpy.int64, count=WORDS).astype(numpy.uint32)
    left = int.from_bytes(state.numpy().tobytes()[8:12], "little")
    twister = numpy.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": WORDS + 1 - left}}
    high, low = twister.random_raw(2 * count).astype(numpy.uint64).reshape(-1, 2).T
    fraction = ((high & numpy.uint64(2**21 - 1)) << numpy.uint64(32) | low) / 2**53
    after = twister.state["state"]
    return torch.from_numpy(fraction < probability), (after["key"].tolist(), after["pos"])


@pytest.mark.parametrize("words", [0, 1, 2, 623, 624, 625])
@pytest.mark.parametrize("count", [1, 2, 7, 311, 312, 313, 624, LARGE])
def test_it_goes_on_wherever_the_generator_is(native, count, words):
    generator = torch.Generator().manual_seed(count)
    torch.rand(words, generator=generator)
    state = generator.get_state()
    expected, (key, place) = by_numpy(state, count, 0.4)
    mask = torch.empty(count, dtype=torch.bool)
    native.draw(state, mask, 0.4)
    assert torch.equal(mask, expected)
    after = numpy.frombuffer(state.numpy().tobytes()[16:], dtype=numpy.int64, count=1 + WORDS).tolist()
    assert after == [place, *key]
    generator.set_state(state)
    assert torch.rand(1, generator=generator).item() < 1


@pytest.mark.parametrize("probability", [0.0, 1.0, 0.1, 0.5, 1e-300, 1 - 2**-53, 2**-53])
@pytest.mark.parametrize("shape", [(LARGE,), (3, 40, 50), (10,), (0,)])
def test_the_default_generator_is_left_as_torch_leaves_it(shape, probability):
    torch.manual_seed(1)
    expected, following = draw_mask(shape, probability), torch.randn(3)
    torch.manual_seed(1)
    found = draw_mask_natively(shape, probability)
    assert found.dtype is torch.bool and torch.equal(found, expected)
    assert torch.equal(torch.randn(3), following)


def test_numbers_that_another_kind_of_draw_set_aside_stay():
    torch.manual_seed(1)
    torch.randn(1)  # normal numbers come in pairs
    draw_mask((LARGE,), 0.5)
    expected = torch.randn(1)
    torch.manual_seed(1)
    torch.randn(1)
    draw_mask_natively((LARGE,), 0.5)
    assert torch.equal(torch.randn(1), expected)


def test_no_number_is_given_twice_when_another_thread_draws_meanwhile(native, monkeypatch):
    class Interrupted:
        threads = 0

        def draw(self, state, mask, probability):
            native.draw(state, mask, probability)
            if not self.threads:
                self.threads += 1
                thread = threading.Thread(target=torch.rand, args=(10,))
                thread.start()
                thread.join()

    torch.manual_seed(2)
    torch.rand(10)
    after, expected = generator_state(), torch.empty(LARGE, dtype=torch.bool)
    native.draw(after, expected, 0.5)
    interrupted = Interrupted()
    monkeypatch.setattr(random_masks, "native_masks", lambda: interrupted)
    torch.manual_seed(2)
    assert torch.equal(draw_mask_natively((LARGE,), 0.5), expected)
    assert torch.equal(generator_state(), after)


def test_this_torch_draws_as_the_machine_code_does():
    """On every processor: no release of torch that dsjit runs on draws masks with MKL, on Intel's neither."""
    assert native_masks() is not None


def with_other_numbers(draw, mask, probability, generator):
    return draw(mask, probability, generator=generator).logical_not_()


def with_another_state(draw, mask, probability, generator):
    drawn = draw(mask, probability, generator=generator)
    torch.rand(1, generator=generator)
    return drawn


def seeding_another_generator(draw, mask, probability, generator):
    """As ATen's kernel with MKL does it: one word seeds a generator that draws the mask."""
    seed = torch.randint(2**31, (), generator=generator)
    return draw(mask, probability, generator=torch.Generator().manual_seed(seed.item()))


@pytest.mark.parametrize("draws", [with_other_numbers, with_another_state, seeding_another_generator])
def test_the_machine_code_is_not_used_where_torch_draws_otherwise(draws, monkeypatch):
    draw = torch.Tensor.bernoulli_
    monkeypatch.setattr(
        torch.Tensor,
        "bernoulli_",
        lambda mask, probability, *, generator: draws(draw, mask, probability, generator),
    )
    assert native_masks.__wrapped__() is None  # what a process does once


def test_where_torch_draws_otherwise_its_own_function_is_called(monkeypatch):
    monkeypatch.setattr(random_masks, "native_masks", lambda: None)
    torch.manual_seed(3)
    expected = draw_mask((LARGE,), 0.5)
    torch.manual_seed(3)
    assert torch.equal(draw_mask_natively((LARGE,), 0.5), expected)


@pytest.mark.parametrize(
    ("target", "compares"),
    [(X86_64_AVX512, "vpcmp"), (X86_64_AVX2, "vpcmpgtq"), (X86_64_SSE2, "pcmpgtd"), (AARCH64_NEON, "cmgt")],
    ids=["AVX-512", "AVX2", "SSE2", "NEON"],
)
def test_targets_compare_several_numbers_at_once(target, compares):
    assert compares in assembly(emit_draw_mask("draw", target), target)
