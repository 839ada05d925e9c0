"""Finds ops whose results have other sizes, far from the sizes of a rehearsal, than the polynomials say.

A factorisation of a matrix has as many columns as its smaller side: at sizes below 50, a matrix of 50 columns shows
nothing but its rows. So ops of which the op table does not say how sizes follow are asked again on the meta device,
where no size costs anything: in the opposite order, and beyond every number that is the same at all points.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Final

import torch
from torch.utils._python_dispatch import _disable_current_modes

from dsjit.ir.graph import UNDEFINED, Graph, Node, TensorType, Value, map_values
from dsjit.ir.graph_template import GraphTemplate, make_graph_template
from dsjit.ir.polynomial import PolynomialFit
from dsjit.ir.template import TemplateMaker
from dsjit.ops.properties import is_dynamic
from dsjit.ops.table import row_of

__all__ = ["alone", "has_stated_shapes", "size_dependent_nodes"]

_FARTHEST: Final = 1 << 16
"""Numbers beyond are no extents, but products or strides."""

_SMALL: Final = 3

_REMAINDERS: Final = 4
_ATTEMPTS: Final = 64


def size_dependent_nodes(
    graphs: Sequence[Graph], fit: PolynomialFit, allowed: Callable[[tuple[int, ...]], bool]
) -> frozenset[int]:
    """The numbers of the nodes whose shapes follow other rules at other sizes.

    graphs: one Graph, as it was recorded at the points of `fit`, with a template. allowed: the sizes that matter.
    """
    alike: dict[Hashable, list[int]] = {}
    for number, nodes in enumerate(zip(*[graph.nodes for graph in graphs], strict=True)):
        if _is_asked(nodes[0]) and any(_key(node) != _key(nodes[0]) for node in nodes):
            alike.setdefault((nodes[0].op, *map(_key, nodes)), []).append(number)
    found: set[int] = set()
    for numbers in alike.values():
        template = make_graph_template([alone(graph, numbers[0]) for graph in graphs], TemplateMaker(fit))
        if has_stated_shapes(template.example.nodes[0]) and not _holds_far_away(template, len(fit.points[0]), allowed):
            found.update(numbers)
    return frozenset(found)


def alone(graph: Graph, *numbers: int) -> Graph:
    """These nodes, with their operands as inputs."""
    nodes = tuple([graph.nodes[number] for number in numbers])
    inner = {value for node in nodes for value in node.outputs}
    operands = dict.fromkeys([value for node in nodes for value in node.inputs() if value not in inner])
    return Graph(tuple(operands), nodes, ())


def has_stated_shapes(node: Node) -> bool:
    """Whether torch gives the results the shapes that the node states; not where torch refuses the call."""
    try:
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            results = node.op(*map_values(node.args, _on_meta), **_keywords(node))
    except Exception:
        return False
    found = [results] if isinstance(results, torch.Tensor) else list(results)
    if len(found) != len(node.outputs):
        return False
    return all(
        value.type is UNDEFINED or (isinstance(result, torch.Tensor) and tuple(result.shape) == value.type.shape)
        for value, result in zip(node.outputs, found, strict=True)
    )


def _is_asked(node: Node) -> bool:
    return row_of(node.op) is None and not node.effect and not node.mutates and not is_dynamic(node)


def _key(node: Node) -> Hashable:
    return repr((_types(node.args), _types(tuple(node.kwargs.items())), [value.type for value in node.outputs]))


def _types(arg: Any) -> Any:
    return map_values(arg, lambda value: value.type)


def _on_meta(value: Value) -> torch.Tensor:
    type_: TensorType = value.type
    return torch.empty_strided(type_.shape, type_.strides, dtype=type_.dtype, device="meta")


def _keywords(node: Node) -> dict[str, Any]:
    given = {name: map_values(arg, _on_meta) for name, arg in node.kwargs.items()}
    return given | {"device": torch.device("meta")} if given.get("device") is not None else given


def _holds_far_away(template: GraphTemplate, count: int, allowed: Callable[[tuple[int, ...]], bool]) -> bool:
    near = [next(filter(allowed, _around(point)), None) for point in _far_points(template, count)]
    nodes = [template.at(point).nodes[0] for point in near if point is not None]
    return all(has_stated_shapes(node) for node in nodes if not _is_empty(node))


def _around(point: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The point, and others close to it, with other remainders."""
    for shift in range(_ATTEMPTS):
        yield tuple([size + shift // _REMAINDERS**place % _REMAINDERS for place, size in enumerate(point)])


def _is_empty(node: Node) -> bool:
    """Whether a size is less than 1: no program for many sizes serves that."""
    return any(size < 1 for value in (*node.inputs(), *node.outputs) for size in value.type.shape)


def _far_points(template: GraphTemplate, count: int) -> Iterator[tuple[int, ...]]:
    """Sizes in both orders, below and beyond every extent and number of the node that does not change."""
    node = template.example.nodes[0]
    shapes = [value.type.shape for value in (*node.inputs(), *node.outputs)]
    numbers = [number for number in _integers((shapes, node.args, tuple(node.kwargs.values()))) if number < _FARTHEST]
    far = max(numbers, default=0) + 1
    for start in (far, _SMALL):
        row = tuple([start + 2 * place + place * place for place in range(count)])
        yield row
        yield row[::-1]
    for place in range(count if count > 1 else 0):
        yield tuple([far + 7 if each == place else _SMALL + 2 * each for each in range(count)])


def _integers(arg: Any) -> Iterator[int]:
    if isinstance(arg, tuple | list):
        for item in arg:
            yield from _integers(item)
    elif type(arg) is int:
        yield arg
