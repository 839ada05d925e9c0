"""The list of workloads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from benchmarks.workloads import attention, control_flow, experts, language, pointwise, residual
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


CHOSEN: Final = {torch.float32: MODEL[torch.float32]}
"""As MODEL, where a rounding can turn a choice, in which bfloat16 is another program."""

ITERATED: Final = {torch.float32: Tolerance(1e-5, 1e-4)}
"""An iteration carries its roundings through every step, amplified by the condition of the problem."""


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
    Workload(
        "early_exit",
        "Early-exit classifier, 12 layers",
        tuple(f"batch {batch}" for batch in control_flow.EXIT_BATCHES),
        control_flow.early_exit,
        control_flow.exit_inputs,
        CHOSEN,
        varied=True,
    ),
    Workload(
        "newton_matrix",
        "Newton, inverse square root, `while` on a tensor",
        tuple(f"{batch}x{size}x{size}" for batch, size in control_flow.MATRIX_SHAPES),
        lambda: control_flow.inverse_square_root,
        control_flow.matrix_inputs,
        ITERATED,
        varied=True,
    ),
    Workload(
        "newton_item",
        "Newton, Kepler's equation, `.item()`",
        tuple(f"{count} orbits" for count in control_flow.ORBIT_COUNTS),
        lambda: control_flow.eccentric_anomaly,
        control_flow.orbit_inputs,
        ITERATED,
        varied=True,
    ),
    Workload(
        "beam_search",
        "Beam search, `.item()`",
        tuple(f"{length} tokens" for length in control_flow.PROMPT_LENGTHS),
        control_flow.beam_search,
        control_flow.beam_inputs,
        CHOSEN,
        varied=True,
    ),
    Workload(
        "routed_experts",
        "Mixture of 8 experts, top 2, rows by `nonzero`",
        tuple(f"{tokens} tokens" for tokens in control_flow.ROUTED_TOKENS),
        control_flow.routed_experts,
        control_flow.routed_inputs,
        CHOSEN,
        varied=True,
    ),
    Workload(
        "adaptive_steps",
        "Adaptive computation time",
        tuple(f"batch {batch}" for batch in control_flow.ADAPTIVE_BATCHES),
        control_flow.adaptive_steps,
        control_flow.adaptive_inputs,
        CHOSEN,
        varied=True,
    ),
)


def find(name: str) -> Workload:
    """The workload called `name`. Raises `KeyError` naming those there are."""
    for workload in WORKLOADS:
        if workload.name == name:
            return workload
    raise KeyError(f"no workload {name!r}; there are {', '.join(workload.name for workload in WORKLOADS)}")
