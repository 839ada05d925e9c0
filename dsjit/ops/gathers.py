"""Ops that pick elements of one operand by the numbers that others hold: `x[rows]`, `embedding`, `gather`.

Each element of the result is an element of the *source*; along some of its dimensions the place is that of the element
in the result, along the others a tensor of integers, the *index*, holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from dsjit.ir.graph import Node, Value
from dsjit.ops.inference import broadcast_shape

__all__ = ["GATHERS", "Gather", "GatherIndex", "gather_of"]

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class GatherIndex:
    """value: broadcasts to `rank` dimensions of the result, from dimension `first` on."""

    value: Value
    first: int
    rank: int


@dataclass(frozen=True, slots=True)
class Gather:
    """places: for each dimension of the source, the dimension of the result that tells the place, or -1 - n where index
    number n does. wraps: whether negative numbers count from the end; they are out of range otherwise."""

    source: Value
    places: tuple[int, ...]
    indices: tuple[GatherIndex, ...]
    wraps: bool = False


def gather_of(node: Node) -> Gather | None:
    """What the node picks; None for other ops, for masks, and where an operand has no dimensions to speak of."""
    rule = GATHERS.get(node.op)
    found = None if rule is None else rule(node)
    return found if found is not None and found.places and _all_numbers(i.value for i in found.indices) else None


def _all_numbers(indices: Iterable[Value]) -> bool:
    """Whether all are tensors of places, and none is a mask."""
    return all(index.type.dtype in (torch.int64, torch.int32) for index in indices)


def _index(node: Node) -> Gather | None:
    """`x[a, b]`: the indices broadcast together, to dimensions that lie where the indices stand if these are
    neighbours, and first if they are not."""
    source, indices = node.args[:2]
    assert isinstance(source, Value)
    given = [dim for dim, index in enumerate(indices) if index is not None]
    if not given or not _all_numbers(indices[dim] for dim in given):
        return None
    rank = len(broadcast_shape([indices[dim].type.shape for dim in given]))
    first = given[0] if given[-1] - given[0] == len(given) - 1 else 0
    others = iter([dim for dim in range(len(node.output.type.shape)) if not first <= dim < first + rank])
    dims = range(len(source.type.shape))
    places = tuple([-1 - given.index(dim) if dim in given else next(others) for dim in dims])
    return Gather(source, places, tuple([GatherIndex(indices[dim], first, rank) for dim in given]), wraps=True)


def _index_select(node: Node) -> Gather:
    source, dim, index = node.args
    rank = len(source.type.shape)
    dim = dim + rank if dim < 0 else dim
    places = tuple([-1 if each == dim else each for each in range(rank)])
    return Gather(source, places, (GatherIndex(index, dim, 1),))


def _embedding(node: Node) -> Gather:
    source, index = node.args[:2]
    rank = len(index.type.shape)
    return Gather(source, (-1, rank), (GatherIndex(index, 0, rank),))


def _gather(node: Node) -> Gather | None:
    source, dim, index = node.args[:3]
    rank = len(source.type.shape)
    if len(index.type.shape) != rank:
        return None
    dim = dim + rank if dim < 0 else dim
    places = tuple([-1 if each == dim else each for each in range(rank)])
    return Gather(source, places, (GatherIndex(index, 0, rank),))


GATHERS: Final[Mapping[Callable[..., Any], Callable[[Node], Gather | None]]] = {
    aten.index.Tensor: _index,
    aten._unsafe_index.Tensor: _index,
    aten.index_select.default: _index_select,
    aten.embedding.default: _embedding,
    aten.gather.default: _gather,
}
"""By overload: how its operands are read (https://docs.pytorch.org/docs/stable/torch.html)."""
