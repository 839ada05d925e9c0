"""Programs whose Python looks at what tensors hold: how far they run, and what they run, differs from call to call.

Written as eager code is written, with nothing done for a compiler. The inputs draw their difficulty, too, so that
the outcomes of one input tell little of those of the next.

Adaptive computation: Graves, "Adaptive Computation Time for Recurrent Neural Networks", 2016. Inverse square root:
Higham, "Functions of Matrices", 2008, eq. 6.35 (the coupled Newton-Schulz iteration). Early exit: Teerapittayanon et
al., "BranchyNet", 2016. Routing: Shazeer et al., "Outrageously Large Neural Networks", 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.workloads.workload import Arguments, seeded

__all__ = [
    "ADAPTIVE_BATCHES",
    "EXIT_BATCHES",
    "MATRIX_SHAPES",
    "ORBIT_COUNTS",
    "PROMPT_LENGTHS",
    "ROUTED_TOKENS",
    "AdaptiveSteps",
    "BeamSearch",
    "EarlyExitClassifier",
    "RoutedExperts",
    "adaptive_inputs",
    "adaptive_steps",
    "beam_inputs",
    "beam_search",
    "early_exit",
    "eccentric_anomaly",
    "exit_inputs",
    "inverse_square_root",
    "matrix_inputs",
    "orbit_inputs",
    "routed_experts",
    "routed_inputs",
]

EXIT_BATCHES = (32, 7, 128)
MATRIX_SHAPES = ((16, 64), (3, 32), (1, 96))
"""(matrices, size)"""
ORBIT_COUNTS = (65536, 4096, 333)
PROMPT_LENGTHS = (8, 5, 12)
ROUTED_TOKENS = (256, 64, 33)
ADAPTIVE_BATCHES = (64, 16, 5)


class EarlyExitClassifier(nn.Module):
    """Residual blocks with a head after each; stops when every sample of the batch is classified with confidence.

    (batch, width) -> logits (batch, classes) and the number of layers that ran.
    """

    def __init__(self, layers: int, width: int, classes: int, threshold: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(layers)
        )
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(layers))
        self.threshold = threshold

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        count = 0
        for layer, head in zip(self.layers, self.heads, strict=True):
            count += 1
            x = x + layer(x)
            logits = head(x)
            confidence = torch.softmax(logits, dim=-1).amax(dim=-1)
            if (confidence > self.threshold).all():
                break
        return logits, count


def early_exit() -> EarlyExitClassifier:
    """Heads that agree on the classes, and are surer with depth, as trained ones are."""
    model = EarlyExitClassifier(layers=12, width=384, classes=10, threshold=0.9)
    directions = seeded(10, 384) / 384**0.5
    with torch.no_grad():
        for depth, head in enumerate(model.heads):
            assert isinstance(head, nn.Linear)
            head.weight.copy_(directions * 1.6**depth)
    return model


def exit_inputs(shape_index: int) -> Arguments:
    return (seeded(EXIT_BATCHES[shape_index], 384) * (0.5 + 4 * torch.rand(())),)


def inverse_square_root(matrices: Tensor, tolerance: float) -> Tensor:
    """A^(-1/2) of symmetric positive definite matrices, (batch, n, n), to a relative residual of `tolerance`."""
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype).expand_as(matrices)
    norm = matrices.flatten(1).norm(dim=1)[:, None, None]
    y, z = matrices / norm, identity
    residual = identity - z @ y
    error = residual.flatten(1).norm(dim=1).max()
    while error > tolerance:
        factor = identity + 0.5 * residual
        y, z = y @ factor, factor @ z
        residual = identity - z @ y
        error = residual.flatten(1).norm(dim=1).max()
    return z / norm.sqrt()


def matrix_inputs(shape_index: int) -> Arguments:
    batch, size = MATRIX_SHAPES[shape_index]
    factor = seeded(batch, size, size) / size**0.5
    ridge = 10 ** (-2 + 3 * torch.rand(()))
    return factor @ factor.transpose(1, 2) + ridge * torch.eye(size), 1e-3


def eccentric_anomaly(mean: Tensor, eccentricity: Tensor, tolerance: float, most: int = 50) -> Tensor:
    """Kepler's equation M = E - e sin E, solved for E by Newton's iteration; all (orbits,), in radians."""
    anomaly = mean + eccentricity * torch.sin(mean)
    for _ in range(most):
        error = anomaly - eccentricity * torch.sin(anomaly) - mean
        anomaly = anomaly - error / (1 - eccentricity * torch.cos(anomaly))
        if error.abs().max().item() < tolerance:
            break
    return anomaly


def orbit_inputs(shape_index: int) -> Arguments:
    count = ORBIT_COUNTS[shape_index]
    mean = 0.1 + 3 * torch.rand(count)
    return mean, torch.rand(count) * (0.05 + 0.9 * torch.rand(())), 1e-5


class DecoderLayer(nn.Module):
    """Pre-norm causal self-attention and MLP: (batch, tokens, width) -> same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.projection(self.attention_norm(x)).view(batch, tokens, 3, self.heads, -1).unbind(2)
        mixed = functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(x)


class Decoder(nn.Module):
    """Token ids (batch, tokens) -> logits of the next token (batch, vocabulary)."""

    def __init__(self, vocabulary: int, positions: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x[:, -1]))
        return logits


class BeamSearch(nn.Module):
    """A prompt (1, tokens) -> the best continuation (1, up to tokens + steps), and its log probability."""

    def __init__(self, decoder: Decoder, beams: int, steps: int, end: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.beams = beams
        self.steps = steps
        self.end = end

    def forward(self, prompt: Tensor) -> tuple[Tensor, float]:
        beams = [(prompt, 0.0)]
        for _ in range(self.steps):
            candidates = []
            for tokens, score in beams:
                if tokens[0, -1].item() == self.end:
                    candidates.append((tokens, score))
                    continue
                log_probabilities = torch.log_softmax(self.decoder(tokens), dim=-1)
                values, ids = log_probabilities.topk(self.beams)
                for k in range(self.beams):
                    candidates.append((torch.cat([tokens, ids[:, k : k + 1]], dim=1), score + values[0, k].item()))
            beams = sorted(candidates, key=lambda candidate: candidate[1], reverse=True)[: self.beams]
        return beams[0]


def beam_search() -> BeamSearch:
    return BeamSearch(Decoder(vocabulary=512, positions=64, width=256, heads=4, layers=2), beams=3, steps=5, end=1)


def beam_inputs(shape_index: int) -> Arguments:
    return (torch.randint(2, 512, (1, PROMPT_LENGTHS[shape_index])),)


class RoutedExperts(nn.Module):
    """Each token runs through the `chosen` experts that its router prefers: (tokens, width) -> same."""

    def __init__(self, width: int, hidden: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(experts)
        )
        self.chosen = chosen

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = torch.softmax(self.router(x), dim=-1).topk(self.chosen, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, slots = (chosen == number).nonzero(as_tuple=True)
            if len(rows) == 0:
                continue
            out.index_add_(0, rows, expert(x[rows]) * weights[rows, slots, None])
        return out


def routed_experts() -> RoutedExperts:
    return RoutedExperts(width=256, hidden=512, experts=8, chosen=2)


def routed_inputs(shape_index: int) -> Arguments:
    """Tokens with something in common, of which the router makes much: some experts get few of them, or none."""
    return (seeded(ROUTED_TOKENS[shape_index], 256) + 2 * torch.rand(()) * seeded(256),)


class AdaptiveSteps(nn.Module):
    """Each sample is worked on until its halting probabilities add up to one: (batch, width) -> its states, weighted
    by them (batch, width), and its number of steps (batch,)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.step = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.halt = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state, output = torch.zeros_like(x), torch.zeros_like(x)
        halted = x.new_zeros(x.shape[0])
        steps = torch.zeros(x.shape[0], dtype=torch.int64)
        running = halted < 0.99
        while running.any():
            state = torch.tanh(state + self.step(torch.cat([x, state], dim=-1)))
            probability = torch.sigmoid(self.halt(state).squeeze(-1))
            ends = halted + probability >= 0.99
            weight = torch.where(ends, 1 - halted, probability) * running
            output = output + weight.unsqueeze(-1) * state
            halted = halted + weight
            steps = steps + running
            running = running & ~ends
        return output, steps


def adaptive_steps() -> AdaptiveSteps:
    """Tells the samples apart enough for some of them to take several times the steps of others."""
    model = AdaptiveSteps(256)
    with torch.no_grad():
        model.halt.bias.fill_(-1.5)
        model.halt.weight.mul_(2.0)
    return model


def adaptive_inputs(shape_index: int) -> Arguments:
    return (seeded(ADAPTIVE_BATCHES[shape_index], 256) * (0.1 + 3 * torch.rand(())),)
