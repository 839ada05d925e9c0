"""The ops of attention on GPUs, on CPUs: their schemas are everywhere, their kernels are not.

Each stands for a backend of scaled_dot_product_attention, and lays its results out as that one does: numbers among the
tensors, results that are left out, sums of rows with a dimension more or rounded up to 32 rows, seeds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

aten = torch.ops.aten

_forward = aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def _sums(logsumexp: torch.Tensor) -> torch.Tensor:
    return logsumexp.contiguous()


def flash(q, k, v, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None) -> tuple[Any, ...]:
    out, sums = _forward(q, k, v, dropout_p, is_causal, scale=scale)
    state, unused = torch.zeros(2, dtype=torch.uint64), torch.zeros((), dtype=torch.uint64)
    return (
        torch.empty_like(q).copy_(out), _sums(sums), None, None, q.shape[2], k.shape[2], state, unused, q.new_empty(0),
    )  # fmt: skip


def flash_backward(
    grad_out, q, k, v, out, sums, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, state, unused, *, scale=None
) -> tuple[torch.Tensor, ...]:
    assert (cum_seq_q, cum_seq_k, max_q, max_k, state.dtype) == (None, None, q.shape[2], k.shape[2], torch.uint64)
    assert sums.shape == q.shape[:3]
    return _backward(grad_out, q, k, v, out, sums, dropout_p, is_causal, scale=scale)


def cudnn(
    q, k, v, bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None
) -> tuple[Any, ...]:
    out, sums = _forward(q, k, v, dropout_p, is_causal, attn_mask=bias, scale=scale)
    seed, offset = torch.zeros(2, dtype=torch.int64).unbind()
    kept = _sums(sums)[..., None] if compute_log_sumexp else None
    return torch.empty_like(q).copy_(out), kept, None, None, q.shape[2], k.shape[2], seed, offset.clone(), None


def cudnn_backward(
    grad_out, q, k, v, out, sums, seed, offset, bias, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, *,
    scale=None,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    assert (cum_seq_q, cum_seq_k, max_q, max_k, seed.dtype) == (None, None, q.shape[2], k.shape[2], torch.int64)
    assert sums.shape == (*q.shape[:3], 1)
    return _backward(grad_out, q, k, v, out, sums[..., 0], dropout_p, is_causal, attn_mask=bias, scale=scale)


def efficient(q, k, v, bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, *, scale=None) -> tuple[Any, ...]:
    out, sums = _forward(q, k, v, dropout_p, is_causal, attn_mask=bias, scale=scale)
    rows = -(-q.shape[2] // 32) * 32 if compute_log_sumexp else 0
    kept = torch.full((*q.shape[:2], rows), torch.inf)
    if compute_log_sumexp:
        kept[..., : q.shape[2]] = sums
    seed, offset = torch.zeros(2, dtype=torch.int64).unbind()
    return out.transpose(1, 2).contiguous().transpose(1, 2), kept, seed, offset.clone()


def efficient_backward(
    grad_out, q, k, v, bias, out, sums, seed, offset, dropout_p, grad_input_mask, is_causal=False, *, scale=None
) -> tuple[Any, ...]:
    assert sums.shape[-1] % 32 == 0 and len(grad_input_mask) == 4
    sums = sums[..., : q.shape[2]]
    return (*_backward(grad_out, q, k, v, out, sums, dropout_p, is_causal, attn_mask=bias, scale=scale), None)


_KERNELS = {
    "flash": (flash, flash_backward),
    "cudnn": (cudnn, cudnn_backward),
    "efficient": (efficient, efficient_backward),
}


@contextlib.contextmanager
def gpu_attention() -> Iterator[None]:
    """While it is entered, CPUs have these ops, too."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name, (forward, backward) in _KERNELS.items():
            library.impl(f"_scaled_dot_product_{name}_attention", forward, "CPU")
            library.impl(f"_scaled_dot_product_{name}_attention_backward", backward, "CPU")
        yield
