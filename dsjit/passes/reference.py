"""The slow definition of what a Graph computes: node by node, with torch.

Tests hold passes and compiled Programs against it, and constant folding evaluates nodes with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from dsjit.errors import VerificationError
from dsjit.ir.graph import Arg, Graph, Node, Value
from dsjit.ops.properties import shares_memory

__all__ = ["evaluate_node", "run_reference", "same_bits"]

_UNDEFINED: Final = torch.empty((), device="meta")


def run_reference(graph: Graph, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The outputs of `graph` on `inputs` (one tensor an input, of its type), writes done to the inputs in place.

    Raises VerificationError when the number of inputs is wrong.
    """
    if len(inputs) != len(graph.inputs):
        raise VerificationError(f"{graph.name} takes {len(graph.inputs)} inputs, got {len(inputs)}")
    env: dict[Value, torch.Tensor] = {**dict(zip(graph.inputs, inputs, strict=True)), **graph.constants}
    with torch.no_grad():
        for node in graph.nodes:
            env.update(zip(node.outputs, evaluate_node(node, env), strict=True))
        written = [env[write.value].clone() for write in graph.writes]
        for write, value in zip(graph.writes, written, strict=True):
            write.opened(env[write.target]).copy_(value)
    return tuple(env[value] for value in graph.outputs)


def evaluate_node(node: Node, env: Mapping[Value, torch.Tensor]) -> list[torch.Tensor]:
    """Run one node; the result has one tensor an output, with the strides of its Value (views: with torch's).

    Arguments that the op writes to are cloned first, and the clones come last; a result that is such a clone is
    not listed twice. Raises whatever the op raises, and VerificationError when the number of results is wrong.
    """
    args = [_concrete(arg, env) for arg in node.args]
    clones: list[torch.Tensor] = []
    for position in node.mutates:
        args[position] = args[position].clone()
        clones.append(args[position])
    returned = node.op(*args, **{name: _concrete(arg, env) for name, arg in node.kwargs.items()})
    results = [tensor for tensor in _flatten(returned) if not any(tensor is clone for clone in clones)] + clones
    if len(results) != len(node.outputs):
        raise VerificationError(f"{node.op} gave {len(results)} tensors for {len(node.outputs)} outputs")
    if shares_memory(node.op):
        return results
    return [_laid_out(tensor, value) for value, tensor in zip(node.outputs, results, strict=True)]


def _laid_out(tensor: torch.Tensor, value: Value) -> torch.Tensor:
    if tensor.stride() == value.type.strides or tensor.shape != value.type.shape:
        return tensor
    result = torch.empty_strided(value.type.shape, value.type.strides, dtype=tensor.dtype, device=tensor.device)
    return result.copy_(tensor)


def _concrete(arg: Arg, env: Mapping[Value, torch.Tensor]) -> Any:
    if isinstance(arg, Value):
        return env[arg]
    if isinstance(arg, tuple):
        return [_concrete(item, env) for item in arg]
    return arg


def _flatten(returned: Any) -> list[torch.Tensor]:
    if isinstance(returned, torch.Tensor):
        return [returned]
    if isinstance(returned, (tuple, list)):
        # A result that the op leaves undefined has a Value, too, as the recorder types it, and so has a number.
        return [t for item in returned for t in ([_UNDEFINED] if item is None or type(item) is int else _flatten(item))]
    return []


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether dtype, shape and every element's bits are equal (NaN equals NaN, 0.0 differs from -0.0)."""
    return a.dtype is b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
