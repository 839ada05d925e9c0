"""What sizes may do to the ops of a Graph that was recorded at a few sizes only.

Shapes were found as polynomials that hold at these sizes. Most ops cannot betray them: their results have sizes that
are polynomials of their operands' sizes, or they raise. The ops below clamp, round or pick by size.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any, Final

import torch

from dsjit.ir.graph import Graph, Node
from dsjit.ops.binding import bind_arguments

__all__ = ["keeps_shape_rules", "rounds_sizes", "ruled_part"]

aten = torch.ops.aten

_ROUNDING: Final = ("upsample", "pool", "conv", "im2col", "col2im", "grid", "fft", "stft", "unfold", "interpolate")


def rounds_sizes(node: Node) -> bool:
    """Whether the sizes of `node` behind batch and channels are rounded, so that few of them tell nothing of others."""
    name = str(node.op)
    return any(part in name for part in _ROUNDING)


def ruled_part(graph: Graph) -> Graph:
    """The ops that clamp or pick by size, with their operands as inputs."""
    nodes = tuple([node for node in graph.nodes if node.op in _RULES])
    inner = {value for node in nodes for value in node.outputs}
    operands = dict.fromkeys([value for node in nodes for value in node.inputs() if value not in inner])
    return Graph(tuple(operands), nodes, ())


def keeps_shape_rules(graph: Graph) -> bool:
    """Whether the ops of a `ruled_part` give the shapes that it states."""
    return all(_RULES[node.op](node) for node in graph.nodes)


def _wrap(index: int, size: int) -> int:
    return index + size if index < 0 else index


def _slice(node: Node) -> bool:
    full = bind_arguments(node.op, node.args, dict(node.kwargs))
    shape = node.args[0].type.shape
    dim = _wrap(full.get("dim") or 0, len(shape))
    size, start = shape[dim], full.get("start") or 0
    positions = range(size)[slice(start, full.get("end"), full.get("step") or 1)]
    length: int = node.output.type.shape[dim]
    # A start that is clamped begins elsewhere than where it says, unless all is taken: then it begins at zero.
    starts_there = 0 <= _wrap(start, size) <= size or positions == range(size)
    return starts_there and len(positions) == length


def _select(node: Node) -> bool:
    shape = node.args[0].type.shape
    size: int = shape[_wrap(node.args[1], len(shape))]
    return bool(-size <= node.args[2] < size)


def _diagonal(node: Node) -> bool:
    full = bind_arguments(node.op, node.args, dict(node.kwargs))
    shape = node.args[0].type.shape
    length: int = node.output.type.shape[-1]
    rows: int
    columns: int
    rows, columns = (shape[_wrap(full.get(name, default), len(shape))] for name, default in (("dim1", 0), ("dim2", 1)))
    offset = full.get("offset") or 0
    return length == max(0, min(rows + min(offset, 0), columns - max(offset, 0)))


def _split(node: Node) -> bool:
    full = bind_arguments(node.op, node.args, dict(node.kwargs))
    shape = node.args[0].type.shape
    dim = _wrap(full.get("dim") or 0, len(shape))
    length = full["split_size"]
    pieces = [value.type.shape[dim] for value in node.outputs]
    whole = pieces[:-1]
    return sum(pieces) == shape[dim] and all(piece == length for piece in whole) and 0 < pieces[-1] <= length


def _arange(node: Node) -> bool:
    full = bind_arguments(node.op, node.args, dict(node.kwargs))
    start, end, step = full.get("start") or 0, full["end"], full.get("step") or 1
    return node.output.type.shape == (max(ceil((end - start) / step), 0),)


_RULES: Final[dict[Any, Callable[[Node], bool]]] = {
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.diagonal.default: _diagonal,
    aten.split.Tensor: _split,
    aten.arange.default: _arange,
    aten.arange.start: _arange,
    aten.arange.start_step: _arange,
}
