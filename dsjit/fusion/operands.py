"""What fusion needs to know of a node: its kind, its rule, and how it reads its operands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import torch

from dsjit.fusion.affine import Affine
from dsjit.fusion.group import Access, Group, Guard
from dsjit.fusion.limits import Limits
from dsjit.ir.dtypes import KERNEL_DTYPES
from dsjit.ir.graph import Node, Value
from dsjit.ops.binding import bind
from dsjit.ops.gathers import Gather, gather_of
from dsjit.ops.row import Pointwise, Reduction
from dsjit.ops.table import can_hold, row_of

__all__ = ["GatheredSource", "IndexOperand", "NodeInfo", "NodeKind", "Operand", "describe", "operand_access"]

CONCAT_OPS: Final[frozenset[Any]] = frozenset({torch.ops.aten.cat.default})


class NodeKind(Enum):
    POINTWISE = "pointwise"
    REDUCTION = "reduction"
    CONCAT = "concat"
    GATHER = "gather"
    LIBRARY = "library"


@dataclass(frozen=True, slots=True)
class Operand:
    """One tensor operand: its Value, and for a concatenation where in the result it lies."""

    value: Value
    dim: int = -1
    offset: int = 0

    def access(self, access: Access) -> Access:
        """The access to this operand when the node's element is wanted at `access` (broadcasting applied)."""
        shape = self.value.type.shape
        if self.dim >= 0:
            form = access.index[self.dim]
            shifted = form.shifted(-self.offset)
            guard = Guard(form, self.offset, self.offset + shape[self.dim])
            index = access.index[: self.dim] + (shifted,) + access.index[self.dim + 1 :]
            return Access(_clamp(index, shape), access.guards + (guard,))
        lead = len(access.index) - len(shape)
        return Access(_clamp(access.index[lead:], shape), access.guards)


@dataclass(frozen=True, slots=True)
class IndexOperand:
    """A tensor whose integers are places in dimension `dim` of the source of a gather. It broadcasts to `rank`
    dimensions of the result, from dimension `first` on."""

    value: Value
    dim: int
    first: int
    rank: int

    def access(self, access: Access) -> Access:
        """The access to this operand when the node's element is wanted at `access`."""
        shape = self.value.type.shape
        end = self.first + self.rank
        return Access(_clamp(access.index[end - len(shape) : end], shape), access.guards)


@dataclass(frozen=True, slots=True)
class GatheredSource:
    """The operand of which a gather picks elements. places: as `ops.gathers.Gather` has them; what is negative there is
    the axis that stands for the place."""

    value: Value
    places: tuple[int, ...]

    @property
    def extents(self) -> dict[int, int]:
        """The number of places, by the axis that stands for one."""
        shape = self.value.type.shape
        return {place: size for place, size in zip(self.places, shape, strict=True) if place < 0}

    def access(self, access: Access) -> Access:
        """The access to this operand when the node's element is wanted at `access`."""
        index = [Affine.axis(place) if place < 0 else access.index[place] for place in self.places]
        return Access(tuple(index), access.guards)


def _clamp(index: tuple[Affine, ...], shape: tuple[int, ...]) -> tuple[Affine, ...]:
    return tuple(Affine() if size == 1 else form for form, size in zip(index, shape, strict=True))


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """kind, rule and (distinct) operands of a node; for a reduction, `dims` are the reduced dimensions. Those of a
    gather are the source and the indices; `wraps` as `ops.gathers.Gather` has it."""

    kind: NodeKind
    operands: tuple[Operand | IndexOperand | GatheredSource, ...] = ()
    rule: Pointwise | Reduction | None = None
    dims: tuple[int, ...] = ()
    wraps: bool = False


LIBRARY: Final = NodeInfo(NodeKind.LIBRARY)


def describe(node: Node, limits: Limits, device: torch.device) -> NodeInfo:
    """Classify `node` for kernels on `device`; anything that a Kernel cannot hold is a library call."""
    if node.mutates or node.effect or len(node.outputs) != 1:
        return LIBRARY
    if node.op in CONCAT_OPS:
        return _describe_concat(node, limits, device)
    gather = gather_of(node)
    if gather is not None:
        return _describe_gather(node, gather, device)
    row = row_of(node.op)
    if row is None or not isinstance(row.rule, Pointwise | Reduction):
        return LIBRARY
    values = (node.output, *node.inputs())
    if not all(_has_points(value, device) and can_hold(node.op, value) for value in values):
        return LIBRARY
    if row.when is not None and not row.when(node):
        return LIBRARY
    bound = bind(node)
    rule = row.rule
    if isinstance(rule, Reduction):
        operand = node.args[0]
        assert isinstance(operand, Value)
        dims = rule.dims(bound, len(operand.type.shape))
        return NodeInfo(NodeKind.REDUCTION, (Operand(operand),), rule, dims)
    operands = dict.fromkeys(bound[name] for name in rule.tensors)
    return NodeInfo(NodeKind.POINTWISE, tuple(Operand(value) for value in operands if isinstance(value, Value)), rule)


def _describe_concat(node: Node, limits: Limits, device: torch.device) -> NodeInfo:
    parts = node.args[0]
    out = node.output.type
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    rank = len(out.shape)
    if rank == 0 or len(parts) > limits.concat or not _fits(node.output, device):
        return LIBRARY
    if not all(_fits(value, device) and value.type.dtype is out.dtype for value in parts):
        return LIBRARY
    if any(len(value.type.shape) != rank for value in parts):
        return LIBRARY
    dim = dim + rank if dim < 0 else dim
    offset = 0
    found: list[Operand] = []
    for value in parts:
        found.append(Operand(value, dim, offset))
        offset += value.type.shape[dim]
    return NodeInfo(NodeKind.CONCAT, tuple(found))


def _describe_gather(node: Node, gather: Gather, device: torch.device) -> NodeInfo:
    if not _fits(node.output, device) or not all(_fits(value, device) for value in node.inputs()):
        return LIBRARY
    indices = [
        IndexOperand(index.value, gather.places.index(-1 - number), index.first, index.rank)
        for number, index in enumerate(gather.indices)
    ]
    return NodeInfo(NodeKind.GATHER, (GatheredSource(gather.source, gather.places), *indices), wraps=gather.wraps)


def _fits(value: Value, device: torch.device) -> bool:
    return value.type.dtype in KERNEL_DTYPES and _has_points(value, device)


def _has_points(value: Value, device: torch.device) -> bool:
    return value.type.device == device and 0 not in value.type.shape


def operand_access(
    group: Group, node: Node, operand: Operand | IndexOperand | GatheredSource, access: Access
) -> Access:
    """How `node`, wanted at `access` in `group`, reads `operand` (a reduction reads along the group's rows)."""
    index = group.reduced.get(node)
    return operand.access(access if index is None else Access(index, access.guards))
