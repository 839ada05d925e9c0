"""The cross entropy of a linear layer and its gradients, a few rows at a time: the logits are never whole.

The gradients are those for a gradient of 1 of the loss; the backward multiplies them by what it gets (Hsu et al., Liger
Kernel, 2024). So each product is computed once, as in eager.

In bfloat16 and float16, logits, logarithms of probabilities and the gradient of logits are rounded where eager rounds
them. Gradients of operands are sums in float32: what adds up chunks, and what multiplies by the gradient of the loss,
would round once more each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from dsjit.ir.dtypes import compute_dtype

__all__ = ["MEAN", "SUM", "UNITS", "linear_cross_entropy"]

MEAN: Final = 1
SUM: Final = 2
"""`at::Reduction` in ATen/core/Reduction.h."""

UNITS: Final[Mapping[torch.dtype, float]] = {torch.float16: 2.0**15}
"""What the gradient of a row's loss is taken to be while the dtype holds that of logits, where shares of a mean are too
small for it. In eager, the caller scales the loss; here, its scale is not known yet. This is the largest power of two
that fits, so that no scale of the caller's would keep more."""

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
    widened: bool,
) -> tuple[Tensor, ...]:
    """`nll_loss(log_softmax(hidden @ matrix + bias), target)`, the number of targets that count, and gradients.

    hidden: (rows, features). matrix: (features, classes). bias: (classes,). target: int64, (rows,), classes or
        `ignore_index`. reduction: MEAN or SUM.
    wanted: whether the gradients of hidden, of the transpose of matrix, (classes, features), and of bias are.
    widened: whether logits in reduced precision are converted to float32 before `log_softmax`.
    The results are (loss, count, *those gradients). Loss and count have the dtype of `log_softmax`, gradients that of
    hidden, or float32 where that is bfloat16 or float16.
    Raises RuntimeError for targets that are no classes.
    """
    rows, classes = hidden.shape[0], matrix.shape[1]
    wide = compute_dtype(hidden.dtype)
    logarithm_dtype = wide if widened else hidden.dtype
    counted = target != ignore_index
    count = counted.sum()
    divisor = count.clamp(min=1).to(wide) if reduction == MEAN else count.new_ones((), dtype=wide)
    unit = UNITS.get(hidden.dtype)
    share = counted.to(wide) / divisor if unit is None else counted.to(wide) * unit
    share = share.unsqueeze(1)
    column = torch.where(counted, target, 0).unsqueeze(1)
    losses = torch.empty_like(share)
    d_hidden = torch.empty_like(hidden, dtype=wide) if wanted[0] else None
    d_weight = matrix.new_zeros(classes, hidden.shape[1], dtype=wide) if wanted[1] else None
    d_bias = matrix.new_zeros(classes, dtype=wide) if wanted[2] else None
    row_bytes = classes * wide.itemsize
    chunk = max(CHUNK_BYTES // row_bytes, 64)
    piece = max(PIECE_BYTES // row_bytes, 1)
    memory = hidden.new_empty(min(chunk, rows), classes)
    # Products of float32 add up in float32: those of reduced precision round each of their sums.
    wide_memory = memory if wide is hidden.dtype else torch.empty_like(memory, dtype=wide)
    logarithms = hidden.new_empty(min(piece, rows), classes, dtype=logarithm_dtype)
    for start in range(0, rows, chunk):
        part = slice(start, min(start + chunk, rows))
        logits, gradient = (each[: part.stop - part.start] for each in (memory, wide_memory))
        if bias is None:
            torch.mm(hidden[part], matrix, out=logits)
        else:
            torch.addmm(bias, hidden[part], matrix, out=logits)
        for first in range(start, part.stop, piece):
            few = slice(first, min(first + piece, part.stop))
            own = slice(first - start, few.stop - start)
            lines = logarithms[: few.stop - few.start]
            _differentiate(logits[own], gradient[own], lines, column[few], share[few], losses[few])
        if d_hidden is not None:
            _multiply(gradient, matrix, d_hidden[part])
        if d_weight is not None:
            d_weight.addmm_(gradient.t(), hidden[part].to(wide))
        if d_bias is not None:
            d_bias += gradient.sum(0)
    loss = torch.where(counted, losses.squeeze(1), 0.0).sum(dtype=torch.float64)
    if reduction == MEAN:
        loss = loss / count
    gradients = [gradient for gradient in (d_hidden, d_weight, d_bias) if gradient is not None]
    if unit is not None:
        for whole in gradients:
            whole /= divisor * unit
    return (loss.to(logarithm_dtype), count.to(logarithm_dtype), *gradients)


def _differentiate(
    logits: Tensor, gradient: Tensor, logarithms: Tensor, column: Tensor, share: Tensor, losses: Tensor
) -> None:
    """Writes the gradient of logits, and the losses of rows. gradient: logits themselves, or memory in float32 for
    numbers that have been rounded to the dtype of logits. logarithms: memory for logarithms of probabilities, in the
    dtype to which they are rounded."""
    whole = logits if logits.dtype is logarithms.dtype else gradient.copy_(logits)
    torch._log_softmax(whole, 1, False, out=logarithms)
    losses.copy_(logarithms.gather(1, column)).neg_()
    gradient.copy_(logarithms).exp_() if gradient.dtype is not logarithms.dtype else torch.exp(logarithms, out=gradient)
    gradient *= share
    gradient.scatter_add_(1, column, -share)
    if gradient.dtype is not logits.dtype:
        gradient.copy_(logits.copy_(gradient))


def _multiply(gradient: Tensor, matrix: Tensor, d_hidden: Tensor) -> None:
    """gradient: (rows, classes). matrix: (features, classes), in the dtype of the gradient or a narrower one; it is
    converted a few classes at a time. d_hidden: (rows, features), written."""
    if matrix.dtype is gradient.dtype:
        torch.mm(gradient, matrix.t(), out=d_hidden)
        return
    few = max(PIECE_BYTES // (matrix.shape[0] * gradient.element_size()), 64)
    d_hidden.zero_()
    for first in range(0, matrix.shape[1], few):
        classes = slice(first, first + few)
        d_hidden.addmm_(gradient[:, classes], matrix[:, classes].t().to(gradient.dtype))
