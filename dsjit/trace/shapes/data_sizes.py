"""Sizes that depend on data: what ops such as `nonzero` found in one run, numbered, so that they can be left open."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import torch

from dsjit.ir.graph import Node, TensorType, Value
from dsjit.ir.structure_graph import argument_structure
from dsjit.ops.properties import is_reproducible
from dsjit.trace.looks.outcome import OutcomeKind
from dsjit.trace.looks.segments import Recording, open_looks
from dsjit.trace.shapes.open_sizes import stride_order

__all__ = ["DataSizes", "DynamicResult", "find_data_sizes"]

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class DynamicResult:
    """A result of an op that decides sizes by data. type: as it was recorded. order: of its dimensions in memory, from
    the innermost on.

    dims: by dimension, the number of the size that is open there. fixed: by dimension, a size that is none (0 or 1).
    """

    type: TensorType
    order: tuple[int, ...]
    dims: Mapping[int, int]
    fixed: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class DataSizes:
    """looks: the results that were looked at, for each look at a shape, in order; none where all sizes are the same
    on every run. typical: what the open sizes were. smallest: what they may be."""

    looks: tuple[tuple[DynamicResult, ...], ...]
    typical: tuple[int, ...]
    smallest: int


def find_data_sizes(recording: Recording, smallest: int = 1, coupled: bool = False) -> DataSizes:
    """The sizes from `smallest` on (1 or more) that data decided, numbered from 0 on.

    Sizes that are equal whatever the data are one: those of `x[mask]` and `y[mask]`. coupled: so are those that are
    equal in this run.
    """
    counts = _Counts(recording)
    varying = {id(look) for look in open_looks(recording)}
    numbers: dict[Hashable, int] = {}
    typical: list[int] = []
    found: list[tuple[DynamicResult, ...]] = []
    for look in recording.looks:
        if look.kind is not OutcomeKind.SHAPE:
            continue
        results: list[DynamicResult] = []
        if id(look) in varying:
            maker = recording.nodes[look.position - 1]
            key = counts.key(maker)
            for value, free in zip(look.values, look.dims, strict=False):
                shape = value.type.shape
                dims: dict[int, int] = {}
                for dim in free:
                    if shape[dim] >= smallest:
                        dims[dim] = numbers.setdefault(shape[dim] if coupled else key, len(typical))
                        typical += [shape[dim]] * (dims[dim] == len(typical))
                fixed = {dim: shape[dim] for dim in free if dim not in dims}
                results.append(DynamicResult(value.type, _order(maker, value.type), dims, fixed))
        found.append(tuple(results))
    return DataSizes(tuple(found), tuple(typical), smallest)


def _order(maker: Node, type_: TensorType) -> tuple[int, ...]:
    if maker.op is aten.nonzero.default:
        return tuple(range(len(type_.shape)))  # which the strides of one row do not tell
    return stride_order(type_.shape, type_.strides)


@dataclass(slots=True)
class _Counts:
    """Which sizes are equal: those of ops that count what is true in the same mask."""

    recording: Recording
    _numbers: dict[Value, int] = field(default_factory=dict)
    _known: dict[Hashable, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.recording.nodes:
            if not is_reproducible(node):
                continue
            operands = tuple([self._number(value) for value in node.inputs()])
            for place, value in enumerate(node.outputs):
                key = (argument_structure(node), operands, place)
                self._numbers[value] = self._known.setdefault(key, self._number(value))

    def _number(self, value: Value) -> int:
        """Equal for Values that hold the same, as far as that is plain to see."""
        return self._numbers.setdefault(value, len(self._numbers))

    def key(self, node: Node) -> Hashable:
        """Equal for ops whose sizes are equal."""
        mask = None
        if node.op is aten.nonzero.default:
            mask = node.args[0]
        elif node.op is aten.masked_select.default and node.args[0].type.shape == node.args[1].type.shape:
            mask = node.args[1]
        elif node.op is aten.index.Tensor:
            given = [index for index in node.args[1] if index is not None]
            mask = given[0] if len(given) == 1 else None
        if mask is None:
            return "op", tuple([self._number(value) for value in node.outputs])
        return "true", self._number(mask)
