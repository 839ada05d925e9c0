"""The gate of a mixture of experts: Fedus, Zoph, Shazeer, "Switch Transformers", 2021 (load-balancing loss, eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.workloads.workload import Arguments, seeded

__all__ = ["TOKEN_COUNTS", "ExpertGate", "expert_gate", "expert_inputs"]

TOKEN_COUNTS = (2048, 333, 64)


class ExpertGate(nn.Module):
    """(tokens, embed) -> weights (tokens, k), expert indices (tokens, k) and the load-balancing loss (a scalar)."""

    def __init__(self, embed: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.router = nn.Linear(embed, experts, bias=False)
        self.experts = experts
        self.chosen = chosen

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        probabilities = torch.softmax(self.router(x).float(), dim=-1)
        weights, indices = torch.topk(probabilities, self.chosen, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        dispatched = (indices.unsqueeze(-1) == torch.arange(self.experts)).float().sum(dim=1)
        loss = self.experts * (dispatched.mean(dim=0) / self.chosen * probabilities.mean(dim=0)).sum()
        return weights.to(x.dtype), indices, loss


def expert_gate() -> ExpertGate:
    return ExpertGate(embed=768, experts=16, chosen=2)


def expert_inputs(shape_index: int) -> Arguments:
    return (seeded(TOKEN_COUNTS[shape_index], 768),)
