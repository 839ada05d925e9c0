"""The default random generator of the CPU, as ops: what a Graph calls in place of `torch.random`'s functions."""

from __future__ import annotations

import torch

__all__ = ["generator_state", "seed_generator", "set_generator_state"]


def generator_state() -> torch.Tensor:
    """The state of the default generator, uint8[5056] in torch 2."""
    return torch.default_generator.get_state()


def set_generator_state(state: torch.Tensor) -> None:
    """Put the default generator into a state that `generator_state` returned."""
    torch.default_generator.set_state(state)


def seed_generator(seed: int) -> None:
    """Seed the default generator."""
    torch.default_generator.manual_seed(seed)
