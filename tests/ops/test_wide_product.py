"""A product in reduced precision may keep what its sums have in float32."""

from __future__ import annotations

import pytest
import torch

from dsjit.ops.wide_product import wide_product


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_sums_are_not_rounded(dtype):
    torch.manual_seed(0)
    left, right = torch.randn(40, 7).to(dtype), torch.randn(30, 40).to(dtype)
    found = wide_product(left.t(), right.t())
    assert found.dtype is torch.promote_types(dtype, torch.float32) and found.is_contiguous()
    torch.testing.assert_close(found, (left.double().t() @ right.double().t()).to(found.dtype))
