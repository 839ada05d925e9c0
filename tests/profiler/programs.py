"""Three models with one slow line each, and what the profile says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dsjit.profiler.machine import Machine

MACHINE = Machine(
    "a processor", 1, torch.__version__, ((2**14, 40e9), (2**28, 10e9)), {"float32": 100e9, "float64": 50e9}
)
"""Given to profiles in tests: nothing is measured, and nothing is read from a file."""


class Widened(nn.Module):
    """A perceptron in which float64 gets in by accident."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        scaled = hidden.double() * 0.1  # slow line
        wide = torch.tanh(torch.exp(-scaled * scaled) + torch.sin(scaled))
        return self.second(wide.float())


class Transposed(nn.Module):
    """A mixer whose tokens are copied into another layout before they are sorted."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.inner(x[:64])
        turned = x.t().contiguous()  # slow line
        return turned[:, :1].cumsum(0)[:16] + mixed.sum()


class Scattered(nn.Module):
    """A graph layer that sums messages by a scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        sums = torch.zeros(64, 8)
        sums = sums.scatter_add(0, target.unsqueeze(1).expand(-1, 8), x)  # slow line
        return torch.relu(self.project(sums))


def _messages() -> tuple[Tensor, ...]:
    return torch.randn(200_000, 8), torch.randint(0, 64, (200_000,))


PLANTED: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]], str]] = {
    "an accidental cast to float64": (Widened, lambda: (torch.randn(2000, 64),), "float64"),
    "a transposed copy": (Transposed, lambda: (torch.randn(200_000, 16),), "layout"),
    "a scatter": (Scattered, _messages, "scatter"),
}
"""By what was planted: the model, its inputs, and the kind of the finding."""


def slow_line(model: type[Any]) -> int:
    """The number of the line in this file that the model's slow line has."""
    with open(__file__, encoding="utf-8") as file:
        lines = file.read().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"class {model.__name__}("))
    return 1 + next(n for n, line in enumerate(lines) if n > start and line.endswith("# slow line"))
