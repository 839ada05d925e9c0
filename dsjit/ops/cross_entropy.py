"""The cross entropy of a linear layer and its gradients, a few rows at a time: the logits are never whole.

The gradients are those for a gradient of 1 of the loss; the backward multiplies them by what it gets (Hsu et al., Liger
Kernel, 2024). So each product is computed once, as in eager.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["MEAN", "SUM", "linear_cross_entropy"]

MEAN: Final = 1
SUM: Final = 2
"""`at::Reduction` in ATen/core/Reduction.h."""

CHUNK_BYTES: Final = 96 * 2**20
"""Of logits at once: enough rows that a product is about as fast as a whole one."""

PIECE_BYTES: Final = 8 * 2**20
"""Of logits that go through all pointwise steps before the next ones, so that they stay in cache."""


def linear_cross_entropy(
    hidden: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    target: Tensor,
    reduction: int,
    ignore_index: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, ...]:
    """`nll_loss(log_softmax(hidden @ matrix + bias), target)`, the number of targets that count, and gradients.

    hidden: (rows, features). matrix: (features, classes). bias: (classes,). target: int64, (rows,), classes or
        `ignore_index`. reduction: MEAN or SUM.
    wanted: whether the gradients of hidden, of the transpose of matrix, (classes, features), and of bias are. The
        results are (loss, count, *those gradients).
    Raises RuntimeError for targets that are no classes.
    """
    rows, classes = hidden.shape[0], matrix.shape[1]
    counted = target != ignore_index
    count = counted.sum().to(hidden.dtype)
    share = counted.to(hidden.dtype)
    if reduction == MEAN:
        share = share / count.clamp(min=1)
    share = share.unsqueeze(1)
    column = torch.where(counted, target, 0).unsqueeze(1)
    losses = torch.empty_like(share)
    d_hidden = torch.empty_like(hidden) if wanted[0] else None
    d_weight = matrix.new_zeros(classes, hidden.shape[1]) if wanted[1] else None
    d_bias = matrix.new_zeros(classes) if wanted[2] else None
    row_bytes = classes * hidden.element_size()
    chunk = max(CHUNK_BYTES // row_bytes, 64)
    piece = max(PIECE_BYTES // row_bytes, 1)
    memory = hidden.new_empty(min(chunk, rows), classes)
    logarithms = hidden.new_empty(min(piece, rows), classes)
    for start in range(0, rows, chunk):
        part = slice(start, min(start + chunk, rows))
        logits = memory[: part.stop - part.start]
        if bias is None:
            torch.mm(hidden[part], matrix, out=logits)
        else:
            torch.addmm(bias, hidden[part], matrix, out=logits)
        for first in range(start, part.stop, piece):
            few = slice(first, min(first + piece, part.stop))
            own = logits[first - start : few.stop - start]
            _differentiate(own, logarithms[: own.shape[0]], column[few], share[few], losses[few])
        if d_hidden is not None:
            torch.mm(logits, matrix.t(), out=d_hidden[part])
        if d_weight is not None:
            d_weight.addmm_(logits.t(), hidden[part])
        if d_bias is not None:
            d_bias += logits.sum(0)
    loss = (losses.squeeze(1) * counted).sum(dtype=torch.float64)
    if reduction == MEAN:
        loss = loss / count
    gradients = (d_hidden, d_weight, d_bias)
    return (loss.to(hidden.dtype), count, *[gradient for gradient in gradients if gradient is not None])


def _differentiate(logits: Tensor, logarithms: Tensor, column: Tensor, share: Tensor, losses: Tensor) -> None:
    """Turns logits into the gradient of them, and writes the losses of the rows. logarithms: memory of their size."""
    torch._log_softmax(logits, 1, False, out=logarithms)
    torch.neg(logarithms.gather(1, column), out=losses)
    torch.exp(logarithms, out=logits)
    logits *= share
    logits.scatter_add_(1, column, -share)
