"""What sizes may do to the ops of a Graph that was recorded at a few sizes only.

Shapes were found as polynomials that hold at these sizes. Most ops cannot betray them: their results have sizes that
are polynomials of their operands' sizes, or they raise. The ops below clamp, round or pick by size; of others that do,
`far_sizes` finds out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from typing import Any, Final

import torch

from dsjit.ir.graph import Graph, Node, TensorType
from dsjit.ir.polynomial import PolynomialFit
from dsjit.ops.binding import bind_arguments
from dsjit.ops.strided import span, strided_scatter, strided_view
from dsjit.trace.shapes.far_sizes import alone, has_stated_shapes, size_dependent_nodes

__all__ = ["keeps_shape_rules", "meets", "order_of", "rounds_sizes", "ruled_parts"]

aten = torch.ops.aten

_ROUNDING: Final = ("upsample", "pool", "conv", "im2col", "col2im", "grid", "fft", "stft", "unfold", "interpolate")


def rounds_sizes(node: Node) -> bool:
    """Whether the sizes of `node` behind batch and channels are rounded, so that few of them tell nothing of others."""
    name = str(node.op)
    return any(part in name for part in _ROUNDING)


def meets(point: Sequence[int], conditions: Iterable[str]) -> bool:
    """Whether sizes meet conditions: Python expressions in s0, s1, ..."""
    names = {f"s{number}": size for number, size in enumerate(point)}
    return all(eval(condition, {"max": max, "min": min}, names) for condition in conditions)


def order_of(points: Sequence[tuple[int, ...]]) -> list[tuple[str, tuple[int, int]]]:
    """For each two sizes of which one is nowhere more than the other, a condition that says so, and their numbers.

    Code of torch's own may have asked, and has taken one way alone.
    """
    columns = list(zip(*points, strict=True))
    found: list[tuple[str, tuple[int, int]]] = []
    for one, other in itertools.permutations(range(len(columns)), 2):
        pairs = list(zip(columns[one], columns[other], strict=True))
        if all(less <= more for less, more in pairs):
            sign = "<=" if any(less == more for less, more in pairs) else "<"
            found.append((f"s{one} {sign} s{other}", (one, other)))
    return found


def ruled_parts(graphs: Sequence[Graph], fit: PolynomialFit, conditions: Iterable[str]) -> list[Graph]:
    """The ops that clamp or pick by size, with their operands as inputs.

    graphs: one Graph, as it was recorded at the points of `fit`, with a template. conditions: on the sizes.
    """
    conditions = tuple(conditions)
    found = size_dependent_nodes(graphs, fit, lambda point: meets(point, conditions))
    ruled = [number for number, node in enumerate(graphs[0].nodes) if node.op in _RULES or number in found]
    return [alone(graph, *ruled) for graph in graphs]


def keeps_shape_rules(graph: Graph, recorded: Graph) -> bool:
    """Whether the ops of a ruled part give the shapes that it states. recorded: the same at other sizes."""
    return all(
        _RULES.get(node.op, _by_meta)(node, known) for node, known in zip(graph.nodes, recorded.nodes, strict=True)
    )


def _by_meta(node: Node, recorded: Node) -> bool:
    return has_stated_shapes(node)


def _wrap(index: int, size: int) -> int:
    return index + size if index < 0 else index


def _slice(node: Node, recorded: Node) -> bool:
    full = bind_arguments(node.op, node.args, dict(node.kwargs))
    shape = node.args[0].type.shape
    dim = _wrap(full.get("dim") or 0, len(shape))
    size, start = shape[dim], full.get("start") or 0
    positions = range(size)[slice(start, full.get("end"), full.get("step") or 1)]
    length: int = node.output.type.shape[dim]
    # A start that is clamped begins elsewhere than where it says, unless all is taken: then it begins at zero.
    starts_there = 0 <= _wrap(start, size) <= size or positions == range(size)
    return starts_there and len(positions) == length


def _select(node: Node, recorded: Node) -> bool:
    shape = node.args[0].type.shape
    size: int = shape[_wrap(node.args[1], len(shape))]
    return bool(-size <= node.args[2] < size)


def _diagonal(node: Node, recorded: Node) -> bool:
    full = bind_arguments(node.op, node.args, dict(node.kwargs))
    shape = node.args[0].type.shape
    length: int = node.output.type.shape[-1]
    rows: int
    columns: int
    rows, columns = (shape[_wrap(full.get(name, default), len(shape))] for name, default in (("dim1", 0), ("dim2", 1)))
    offset = full.get("offset") or 0
    return length == max(0, min(rows + min(offset, 0), columns - max(offset, 0)))


def _split(node: Node, recorded: Node) -> bool:
    full = bind_arguments(node.op, node.args, dict(node.kwargs))
    shape = node.args[0].type.shape
    dim = _wrap(full.get("dim") or 0, len(shape))
    length = full["split_size"]
    pieces = [value.type.shape[dim] for value in node.outputs]
    whole = pieces[:-1]
    return sum(pieces) == shape[dim] and all(piece == length for piece in whole) and 0 < pieces[-1] <= length


def _windows(node: Node, recorded: Node) -> bool:
    full = bind_arguments(node.op, node.args, dict(node.kwargs))
    shape = node.args[0].type.shape
    dim = _wrap(full["dimension"], len(shape))
    length: int = node.output.type.shape[dim]
    return bool(length == (shape[dim] - full["size"]) // full["step"] + 1)


def _pieces(node: Node, recorded: Node) -> bool:
    full = bind_arguments(node.op, node.args, dict(node.kwargs))
    shape = node.args[0].type.shape
    sizes: Sequence[int] = full["split_sizes"]
    return bool(sum(sizes) == shape[_wrap(full.get("dim") or 0, len(shape))] and min(sizes) >= 0)


def _arange(node: Node, recorded: Node) -> bool:
    full = bind_arguments(node.op, node.args, dict(node.kwargs))
    start, end, step = full.get("start") or 0, full["end"], full.get("step") or 1
    return node.output.type.shape == (max(ceil((end - start) / step), 0),)


def _strided(node: Node, recorded: Node) -> bool:
    """Sizes and strides may come from code of torch's own that compares sizes: they stay within the operand."""
    operand: TensorType = node.args[0].type
    shape, strides, offset, *dtype = node.args[2 if node.op is strided_scatter else 1 :]
    width = dtype[0].itemsize if dtype else operand.dtype.itemsize
    end = offset + span(shape, strides)
    return bool(offset >= 0 and end * width <= span(operand.shape, operand.strides) * operand.dtype.itemsize)


def _trace(node: Node, recorded: Node) -> bool:
    """Its gradient is written along the shorter side, which may not be another one."""
    rows, columns = node.args[0].type.shape
    recorded_rows, recorded_columns = recorded.args[0].type.shape
    return bool(
        (rows > columns) == (recorded_rows > recorded_columns)
        and (rows < columns) == (recorded_rows < recorded_columns)
    )


_RULES: Final[dict[Any, Callable[[Node, Node], bool]]] = {
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.diagonal.default: _diagonal,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _pieces,
    aten.unfold.default: _windows,
    aten.arange.default: _arange,
    aten.arange.start: _arange,
    aten.arange.start_step: _arange,
    aten.trace.default: _trace,
    strided_view: _strided,
    strided_scatter: _strided,
}
