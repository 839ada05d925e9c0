"""Gradients of what a call returns: for fixed gradients of its results, with respect to all leaves that it could reach.

`.grad` stays as the call left it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dsjit.errors import VerificationError
from dsjit.verification.records import Record, TensorRecord, tensors_below

__all__ = ["differentiated", "gradient_path", "gradient_records", "tangent"]

_WHOLE = "gradients"


def gradient_path(path: str) -> str:
    """Where the gradient of the tensor at `path` is told."""
    return f"gradient of {path}"


def tangent(path: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The gradient of the result at `path`: normal numbers, always the same."""
    generator = torch.Generator().manual_seed(zlib.crc32(path.encode()))
    return torch.randn(shape, generator=generator).to(dtype)


def differentiated(result: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a result that gradients flow into, each once, and where they are met first."""
    seen: set[int] = set()
    for path, tensor in tensors_below({"result": result}).items():
        if tensor.requires_grad and id(tensor) not in seen:
            seen.add(id(tensor))
            yield path, tensor


def gradient_records(result: Any, state: Mapping[str, Any]) -> dict[str, Record]:
    """What a backward of `result` gives to the leaves below `state`; nothing when no gradients flow.

    Raises VerificationError when a program that checks itself does.
    """
    results = list(differentiated(result))
    leaves = {path: each for path, each in tensors_below(state).items() if each.requires_grad and each.is_leaf}
    unique = {id(each): path for path, each in reversed([*leaves.items()])}
    if not results or not unique:
        return {}
    tensors = [leaves[path] for path in unique.values()]
    tangents = [tangent(path, tuple(each.shape), each.dtype) for path, each in results]
    try:
        gradients = torch.autograd.grad([each for _, each in results], tensors, tangents, allow_unused=True)
    except VerificationError:
        raise
    except Exception as error:  # a graph that the call has freed: the other side must say so, too
        return {_WHOLE: f"raises {type(error).__name__}"}
    return {gradient_path(path): _record(each) for path, each in zip(unique.values(), gradients, strict=True)}


def _record(gradient: torch.Tensor | None) -> Record:
    if gradient is None:
        return "none"
    return TensorRecord(gradient, {"dtype": gradient.dtype, "shape": tuple(gradient.shape)})
