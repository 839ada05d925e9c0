"""Attention layers as people write them: a naive sliding window, a local/global mix, a gated two-modality layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.workloads.workload import Arguments, seeded

__all__ = [
    "GATED_SHAPES",
    "MODALITY_SHAPES",
    "WINDOW_SHAPES",
    "gated_attention",
    "gated_inputs",
    "modality_attention",
    "modality_inputs",
    "sliding_window",
    "window_inputs",
]

WINDOW_SHAPES = ((2, 128), (1, 50), (3, 33))
"""(batch, tokens)"""

GATED_SHAPES = ((2, 128), (1, 65), (4, 200))
"""(batch, tokens)"""

MODALITY_SHAPES = ((4, 64, 49), (1, 17, 196), (2, 128, 16))
"""(batch, text tokens, image patches)"""


class SlidingWindowAttention(nn.Module):
    """One head, one Python iteration a token: token t attends to tokens t - window/2 to t + window/2.

    (batch, tokens, embed) -> (batch, tokens, embed)
    """

    def __init__(self, embed: int, window: int) -> None:
        super().__init__()
        self.query = nn.Linear(embed, embed)
        self.key = nn.Linear(embed, embed)
        self.value = nn.Linear(embed, embed)
        self.embed = embed
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        outputs = []
        for t in range(tokens):
            start = max(0, t - self.window // 2)
            end = min(tokens, t + self.window // 2 + 1)
            neighbours = x[:, start:end, :]
            query = self.query(x[:, t : t + 1, :])
            key = self.key(neighbours)
            value = self.value(neighbours)
            scores = torch.bmm(query, key.transpose(1, 2)) / math.sqrt(self.embed)
            outputs.append(torch.bmm(torch.softmax(scores, dim=-1), value))
        return torch.cat(outputs, dim=1)


def sliding_window() -> SlidingWindowAttention:
    return SlidingWindowAttention(embed=64, window=32)


def window_inputs(shape_index: int) -> Arguments:
    return (seeded(*WINDOW_SHAPES[shape_index], 64),)


class GatedLocalGlobalAttention(nn.Module):
    """`g * local + (1 - g) * global`, where g is a sigmoid MLP of the query: (batch, tokens, embed) -> same."""

    def __init__(self, embed: int, heads: int, window: int) -> None:
        super().__init__()
        self.query = nn.Linear(embed, embed)
        self.key = nn.Linear(embed, embed)
        self.value = nn.Linear(embed, embed)
        self.gate = nn.Sequential(nn.Linear(embed, embed // 2), nn.GELU(), nn.Linear(embed // 2, embed), nn.Sigmoid())
        self.output = nn.Linear(embed, embed)
        self.heads = heads
        self.window = window

    def split(self, x: Tensor) -> Tensor:
        batch, tokens, embed = x.shape
        return x.view(batch, tokens, self.heads, embed // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, embed = x.shape
        query = self.query(x)
        q, k, v = self.split(query), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(embed // self.heads)
        position = torch.arange(tokens)
        distant = (position[:, None] - position[None, :]).abs() > self.window
        local_weights = torch.softmax(scores.masked_fill(distant, float("-inf")), dim=-1)
        local_mix = torch.matmul(local_weights, v).transpose(1, 2).reshape(batch, tokens, embed)
        global_mix = torch.matmul(torch.softmax(scores, dim=-1), v).transpose(1, 2).reshape(batch, tokens, embed)
        g = self.gate(query)
        mixed: Tensor = self.output(g * local_mix + (1 - g) * global_mix)
        return mixed


def gated_attention() -> GatedLocalGlobalAttention:
    return GatedLocalGlobalAttention(embed=256, heads=8, window=16)


def gated_inputs(shape_index: int) -> Arguments:
    return (seeded(*GATED_SHAPES[shape_index], 256),)


class ModalityGatedAttention(nn.Module):
    """Text attends to text and image; each modality is scaled by a gate that pooled text and image features set.

    text (batch, tokens, embed), image (batch, patches, embed) -> output (batch, tokens, embed) and the attention
    weights averaged over heads (batch, tokens, tokens + patches).
    """

    def __init__(self, embed: int, heads: int) -> None:
        super().__init__()
        self.text_gate = nn.Linear(2 * embed, embed)
        self.image_gate = nn.Linear(2 * embed, embed)
        self.norm = nn.LayerNorm(embed)
        self.attention = nn.MultiheadAttention(embed, heads, batch_first=True)

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        pooled = torch.cat([text.mean(dim=1), image.amax(dim=1)], dim=-1)
        gated_text = text * torch.sigmoid(self.text_gate(pooled)).unsqueeze(1)
        gated_image = image * torch.sigmoid(self.image_gate(pooled)).unsqueeze(1)
        memory = self.norm(torch.cat([gated_text, gated_image], dim=1))
        attended, weights = self.attention(self.norm(gated_text), memory, memory)
        return text + attended, weights


def modality_attention() -> ModalityGatedAttention:
    return ModalityGatedAttention(embed=256, heads=8)


def modality_inputs(shape_index: int) -> Arguments:
    batch, tokens, patches = MODALITY_SHAPES[shape_index]
    return (seeded(batch, tokens, 256), seeded(batch, patches, 256))
