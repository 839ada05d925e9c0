"""One call of a random program, with its backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

__all__ = ["call"]


def call(function: Callable[..., Any], args: tuple[Any, ...], number: int, gradients: bool) -> tuple[Any, str]:
    """Call, differentiate when `gradients`; the result, and what was raised, as text."""
    torch.default_generator.manual_seed(number)
    try:
        result = function(*args)
        if gradients:
            _differentiate(result)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    return result, ""


def _differentiate(result: Any) -> None:
    """The backward of all results that have one, for gradients that are drawn with a fixed seed."""
    wanted = [tensor for tensor in _tensors(result) if tensor.requires_grad]
    unique = list({id(tensor): tensor for tensor in wanted}.values())
    if unique:
        generator = torch.Generator().manual_seed(0)
        seeds = [torch.randn(t.shape, generator=generator, dtype=torch.float32).to(t.dtype) for t in unique]
        torch.autograd.backward(unique, seeds)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
