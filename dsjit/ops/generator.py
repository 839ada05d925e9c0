"""The default random generators, that of the CPU as ops: what a Graph calls in place of `torch.random`'s functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch

__all__ = [
    "SEEDING",
    "generator_state",
    "generator_states",
    "put_back",
    "seed_all_generators",
    "seed_generator",
    "set_generator_state",
]


def generator_state() -> torch.Tensor:
    """The state of the default generator, uint8[5056] in torch 2."""
    return torch.default_generator.get_state()


def set_generator_state(state: torch.Tensor) -> None:
    """Put the default generator into a state that `generator_state` returned."""
    torch.default_generator.set_state(state)


def seed_generator(seed: int) -> None:
    """Seed the default generator."""
    torch.default_generator.manual_seed(seed)


def seed_all_generators(seed: int) -> None:
    """Seed the default generators of the CPU and of GPUs, as `torch.manual_seed` does."""
    if not torch.cuda._is_in_bad_fork():
        torch.cuda.manual_seed_all(seed)
    seed_generator(seed)


SEEDING: Final[Mapping[str, Callable[[int], None]]] = {"seed": seed_generator, "seed all": seed_all_generators}
"""Ops by what a `GeneratorWatch` calls it."""


def generator_states() -> list[tuple[torch.Generator, torch.Tensor]]:
    """The default generators, those of GPUs among them, and their states. While a stream is recorded, which no state
    can be read from, that of the CPU alone."""
    generators = [torch.default_generator]
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if initialized and not torch.cuda.is_current_stream_capturing():
        generators += torch.cuda.default_generators
    return [(generator, generator.get_state()) for generator in generators]


def put_back(states: list[tuple[torch.Generator, torch.Tensor]]) -> None:
    """Put generators into the states that `generator_states` returned."""
    for generator, state in states:
        generator.set_state(state)
