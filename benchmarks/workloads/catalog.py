"""The list of workloads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from benchmarks.workloads import attention, experts, language, pointwise, residual
from benchmarks.workloads.workload import Tolerance, Workload

__all__ = ["WORKLOADS", "find"]

LAYERS: Final = 4

ELEMENTWISE: Final = {
    torch.float32: Tolerance(1.3e-6, 1e-6),
    torch.bfloat16: Tolerance(1.6e-2, 0.0),
}
"""A few roundings: the relative tolerance of `torch.testing.assert_close` for each dtype."""

LAYER: Final = {
    torch.float32: Tolerance(1.3e-6, 4e-6),
    torch.bfloat16: Tolerance(1.6e-2, 8e-3),
}
"""One layer: sums of hundreds of products, whose cancellations leave an error in proportion to the largest output."""

MODEL: Final = {
    torch.float32: Tolerance(1.3e-6, 2e-5),
    torch.bfloat16: Tolerance(1.6e-2, 3e-2),
}
"""Many layers: a rounding that falls the other way in one layer is carried through the later ones."""


def _sizes(shapes: Sequence[Sequence[int]], unit: str = "") -> tuple[str, ...]:
    return tuple("x".join(map(str, shape)) + unit for shape in shapes)


TOKEN_SHAPES: Final = _sizes(language.TOKEN_SHAPES, " tokens")

WORKLOADS: Final[tuple[Workload, ...]] = (
    Workload("bert", "BERT-base, 4 layers", TOKEN_SHAPES, language.bert(LAYERS), language.token_ids, MODEL),
    Workload("gpt2", "GPT-2 small, 4 layers, KV cache", TOKEN_SHAPES, language.gpt2(LAYERS), language.token_ids, MODEL),
    Workload("llama", "Llama 3.2 1B, 4 layers", TOKEN_SHAPES, language.llama(LAYERS), language.token_ids, MODEL),
    Workload(
        "resnet50",
        "ResNet-50",
        tuple(f"{batch}x3x{pixels}x{pixels}" for batch, pixels in residual.IMAGE_SHAPES),
        residual.resnet,
        residual.images,
        MODEL,
    ),
    Workload(
        "linear_relu",
        "Linear(768, 3072) + ReLU",
        tuple(f"{rows} rows" for rows in pointwise.LINEAR_ROWS),
        pointwise.linear_relu,
        pointwise.linear_inputs,
        LAYER,
    ),
    Workload(
        "pointwise_chain",
        "Pointwise chain",
        _sizes(pointwise.CHAIN_SHAPES),
        lambda: pointwise.chain,
        pointwise.chain_inputs,
        ELEMENTWISE,
        target=2.0,
    ),
    Workload(
        "norm_softmax",
        "Layer norm, scaled softmax",
        _sizes(pointwise.NORM_SHAPES),
        pointwise.norm_softmax,
        pointwise.norm_inputs,
        ELEMENTWISE,
        target=1.5,
    ),
    Workload(
        "sliding_window",
        "Naive sliding-window attention",
        _sizes(attention.WINDOW_SHAPES, " tokens"),
        attention.sliding_window,
        attention.window_inputs,
        LAYER,
    ),
    Workload(
        "gated_attention",
        "Gated local/global attention",
        _sizes(attention.GATED_SHAPES, " tokens"),
        attention.gated_attention,
        attention.gated_inputs,
        LAYER,
    ),
    Workload(
        "expert_gate",
        "Mixture-of-experts gate",
        tuple(f"{tokens} tokens" for tokens in experts.TOKEN_COUNTS),
        experts.expert_gate,
        experts.expert_inputs,
        LAYER,
    ),
    Workload(
        "modality_attention",
        "Two-modality gated attention",
        tuple(f"{b}x({t} tokens, {p} patches)" for b, t, p in attention.MODALITY_SHAPES),
        attention.modality_attention,
        attention.modality_inputs,
        LAYER,
    ),
)


def find(name: str) -> Workload:
    """The workload called `name`. Raises `KeyError` naming those there are."""
    for workload in WORKLOADS:
        if workload.name == name:
            return workload
    raise KeyError(f"no workload {name!r}; there are {', '.join(workload.name for workload in WORKLOADS)}")
