"""The gradient of an embedding, added to another gradient of its weight."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["add_embedding_gradient"]

aten = torch.ops.aten


def add_embedding_gradient(
    total: Tensor,
    gradient: Tensor,
    indices: Tensor,
    padding_idx: int,
    scale_grad_by_freq: bool,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """`total + embedding_dense_backward(gradient, indices, len(total), padding_idx, scale_grad_by_freq)`, with the sums
    of each row in the same order, but without the rows of zeros.

    total: (words, features). gradient: (*, features), of the looked up rows. indices: integers, (*).
    out: where the result goes; it may be the memory of `total`.
    """
    words = indices.reshape(-1).long()
    count = words.numel()
    numbers = torch.arange(count, device=words.device)
    # One of the places at which a word stands, whichever, has its sum; the others have zeros.
    place_of = numbers.new_empty(total.shape[0]).index_copy_(0, words, numbers)
    rows = aten.embedding_dense_backward(gradient.reshape(count, -1), place_of[words], count, -1, scale_grad_by_freq)
    if padding_idx >= 0:
        rows.masked_fill_((words == padding_idx).unsqueeze(1), 0)
    if out is None:
        out = torch.empty_like(total)
    if out.data_ptr() != total.data_ptr():
        out.copy_(total)
    return out.index_add_(0, words, rows)
