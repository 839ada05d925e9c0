"""Masks that machine code draws are torch's, and so is the state that it leaves the generator in."""

from __future__ import annotations

import threading

import pytest
import torch

from dsjit.codegen.llvm import random_masks
from dsjit.codegen.llvm.engine import assembly
from dsjit.codegen.llvm.random_masks import draw_mask_natively, emit_draw_mask, native_masks
from dsjit.codegen.llvm.target import AARCH64_NEON, X86_64_AVX2, X86_64_AVX512, X86_64_SSE2
from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.ops.masks import draw_mask

LARGE = 5000
"""Elements, of a mask that is worth machine code."""


@pytest.fixture(autouse=True)
def generator():
    state = generator_state()
    yield
    set_generator_state(state)


@pytest.fixture
def native():
    found = native_masks()
    if found is None:
        pytest.skip("torch draws by another method on this machine")
    return found


@pytest.mark.parametrize("words", [0, 1, 2, 623, 624, 625])
@pytest.mark.parametrize("count", [1, 2, 7, 311, 312, 313, 624, LARGE])
def test_it_goes_on_wherever_the_generator_is(native, count, words):
    generator = torch.Generator().manual_seed(count)
    torch.rand(words, generator=generator)
    state = generator.get_state()
    mask = torch.empty(count, dtype=torch.bool)
    native.draw(state, mask, 0.4)
    assert torch.equal(mask, torch.empty(count).bernoulli_(0.4, generator=generator).bool())
    assert torch.equal(state, generator.get_state())


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
    torch.manual_seed(2)
    stream = draw_mask((4 * LARGE,), 0.5)
    draw = random_masks.NativeMasks.draw

    class Interrupted:
        taken: torch.Tensor | None = None

        def draw(self, state, mask, probability):
            draw(native, state, mask, probability)
            if self.taken is None:
                thread = threading.Thread(target=lambda: setattr(self, "taken", draw_mask((LARGE,), 0.5)))
                thread.start()
                thread.join()

    interrupted = Interrupted()
    monkeypatch.setattr(random_masks, "native_masks", lambda: interrupted)
    torch.manual_seed(2)
    found = draw_mask_natively((LARGE,), 0.5)
    assert torch.equal(interrupted.taken, stream[:LARGE])
    assert torch.equal(found, stream[LARGE : 2 * LARGE])


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
