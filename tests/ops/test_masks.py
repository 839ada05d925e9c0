"""Masks: drawn as eager draws numbers that are 0 or 1, and kept as bits."""

from __future__ import annotations

import pytest
import torch

from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.ops.masks import draw_mask, pack_mask, unpack_mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (7,), (40, 50)])
def test_a_drawn_mask_is_eagers_and_leaves_the_generator_as_eager_does(shape, dtype):
    state = generator_state()
    try:
        mask = draw_mask(shape, 0.3)
        after = generator_state()
        set_generator_state(state)
        assert torch.equal(mask, torch.bernoulli(torch.empty(shape, dtype=dtype), 0.3).bool())
        assert torch.equal(generator_state(), after)
    finally:
        set_generator_state(state)


@pytest.mark.parametrize("shape", [(1,), (8,), (9,), (3, 5, 7), (64, 64)])
def test_bits_hold_the_mask(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    bits = pack_mask(mask)
    assert bits.dtype is torch.uint8 and bits.shape == (-(-mask.numel() // 8),)
    assert torch.equal(unpack_mask(bits, shape), mask)


def test_the_first_element_is_the_lowest_bit():
    assert pack_mask(torch.tensor([True, False, False, True, False, False, False, False, True])).tolist() == [9, 1]
