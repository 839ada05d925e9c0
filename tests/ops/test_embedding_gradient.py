"""The gradient of an embedding is added as eager adds it, bit for bit."""

from __future__ import annotations

import pytest
import torch

from dsjit.ops.embedding_gradient import add_embedding_gradient

WORDS, FEATURES = 50, 8


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("padding_idx", [-1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
def test_it_is_the_sum_of_both(dtype, padding_idx, scaled, index_dtype):
    torch.manual_seed(0)
    total = torch.randn(WORDS, FEATURES, dtype=dtype)
    gradient = torch.randn(4, 6, FEATURES, dtype=dtype)
    indices = torch.randint(0, 12, (4, 6), dtype=index_dtype)  # words repeat, and 3 is among them
    dense = torch.ops.aten.embedding_dense_backward(gradient, indices, WORDS, padding_idx, scaled)
    before = total.clone()
    assert torch.equal(add_embedding_gradient(total, gradient, indices, padding_idx, scaled), total + dense)
    assert torch.equal(total, before)
    over = add_embedding_gradient(total, gradient, indices, padding_idx, scaled, out=total)
    assert over is total and torch.equal(over, before + dense)
