"""How view ops move indices: from an index into the output to the index into the input.

This is view elimination: a view in a fused group costs nothing, it only rewrites the index at which its input is
read. Every rule is pulled from consumer to producer, so that a slice, an expand or a select is a plain rewrite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from dsjit.fusion.affine import Affine, IndexMap, NotAffine, digits
from dsjit.ir.graph import Node, TensorType, Value
from dsjit.ops.strided import strided_view

__all__ = ["VIEW_RULES", "Views", "digit_margins", "is_view", "pull_index", "strides_of", "view_source"]

aten = torch.ops.aten

Sizes = Mapping[int, int]
Rule = Callable[[Node, int, IndexMap, Sizes], IndexMap]


def view_source(node: Node) -> Value:
    """The Value that a view node looks at."""
    source = node.args[0]
    assert isinstance(source, Value)
    return source


def is_view(node: Node) -> bool:
    """Whether `node` only re-indexes its first argument."""
    return node.op in VIEW_RULES


def pull_index(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    """The index into the input of a view at which its element `index` of output number `output` lives.

    Raises NotAffine (with a split that helps, or without) when no affine index exists.
    """
    return VIEW_RULES[node.op](node, output, index, sizes)


def reshape_index(shape: tuple[int, ...], index: IndexMap, source: tuple[int, ...], sizes: Sizes) -> IndexMap:
    """The index into `source` of element `index` of `shape`, both row-major over the same elements."""
    if shape == source:
        return index
    out: list[Affine] = [Affine()] * len(source)
    for dims, source_dims in _aligned(shape, source):
        if not source_dims:
            continue
        linear = Affine()
        weight = 1
        for d in reversed(dims):
            linear = linear.plus(index[d].times(weight))
            weight *= shape[d]
        chunk = tuple(source[d] for d in source_dims)
        for d, form in zip(source_dims, digits(linear, chunk, sizes), strict=True):
            out[d] = form if source[d] != 1 else Affine()
    return tuple(out)


def _aligned(a: tuple[int, ...], b: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Pair up minimal runs of dimensions of `a` and of `b` that hold equally many elements; sizes of 1 are dropped."""
    left = [d for d, size in enumerate(a) if size != 1]
    right = [d for d, size in enumerate(b) if size != 1]
    pairs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(left) or j < len(right):
        run_a, run_b = [left[i]], [right[j]]
        product_a, product_b = a[left[i]], b[right[j]]
        i, j = i + 1, j + 1
        while product_a != product_b:
            if product_a < product_b:
                run_a.append(left[i])
                product_a *= a[left[i]]
                i += 1
            else:
                run_b.append(right[j])
                product_b *= b[right[j]]
                j += 1
        pairs.append((run_a, run_b))
    return pairs


def _source_type(node: Node) -> TensorType:
    return view_source(node).type


def _wrap(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def _argument(node: Node, position: int, name: str, default: Any) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _same(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    return index


def _reshape(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    if node.outputs[0].type.numel == 0:
        return tuple(Affine() for _ in _source_type(node).shape)
    return reshape_index(node.outputs[output].type.shape, index, _source_type(node).shape, sizes)


def _permute(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    rank = len(index)
    order = [_wrap(d, rank) for d in node.args[1]]
    out = [Affine()] * rank
    for position, d in enumerate(order):
        out[d] = index[position]
    return tuple(out)


def _swap(first: int, second: int, index: IndexMap) -> IndexMap:
    out = list(index)
    out[first], out[second] = out[second], out[first]
    return tuple(out)


def _transpose(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    rank = len(index)
    return _swap(_wrap(node.args[1], rank), _wrap(node.args[2], rank), index) if rank else index


def _t(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    return _swap(0, 1, index) if len(index) == 2 else index


def _expand(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    source = _source_type(node).shape
    lead = len(index) - len(source)
    target = node.outputs[output].type.shape
    return tuple(Affine() if size == 1 and target[lead + d] != 1 else index[lead + d] for d, size in enumerate(source))


def _unsqueeze(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    dim = _wrap(node.args[1], len(index))
    return index[:dim] + index[dim + 1 :]


def _squeeze(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    source = _source_type(node).shape
    rank = len(source)
    dims = _argument(node, 1, "dim", None)
    if dims is None:
        dropped = {d for d in range(rank) if source[d] == 1}
    else:
        listed = dims if isinstance(dims, tuple) else (dims,)
        dropped = {_wrap(d, rank) for d in listed if rank and source[_wrap(d, rank)] == 1}
    rest = iter(index)
    return tuple(Affine() if d in dropped else next(rest) for d in range(rank))


def _select(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    source = _source_type(node).shape
    dim = _wrap(node.args[1], len(source))
    position = _wrap(node.args[2], source[dim])
    return index[:dim] + (Affine(position),) + index[dim:]


def _slice(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    source = _source_type(node).shape
    dim = _wrap(_argument(node, 1, "dim", 0), len(source))
    start = _argument(node, 2, "start", None) or 0
    step = _argument(node, 4, "step", 1)
    size = source[dim]
    start = min(max(start + size if start < 0 else start, 0), size)
    return index[:dim] + (index[dim].times(step).shifted(start),) + index[dim + 1 :]


def _flip(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    source = _source_type(node).shape
    flipped = {_wrap(d, len(source)) for d in node.args[1]}
    return tuple(form.times(-1).shifted(source[d] - 1) if d in flipped else form for d, form in enumerate(index))


def _split_dim(node: Node, dim: int, output: int, index: IndexMap) -> IndexMap:
    start = sum(value.type.shape[dim] for value in node.outputs[:output])
    return index[:dim] + (index[dim].shifted(start),) + index[dim + 1 :]


def _split(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    return _split_dim(node, _wrap(_argument(node, 2, "dim", 0), len(index)), output, index)


def _unbind(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    dim = _wrap(_argument(node, 1, "dim", 0), len(index) + 1)
    return index[:dim] + (Affine(output),) + index[dim:]


def _diagonal(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    rank = len(_source_type(node).shape)
    offset = _argument(node, 1, "offset", 0)
    first = _wrap(_argument(node, 2, "dim1", 0), rank)
    second = _wrap(_argument(node, 3, "dim2", 1), rank)
    along = index[-1]
    rest = iter(index[:-1])
    out: list[Affine] = []
    for d in range(rank):
        if d == first:
            out.append(along.shifted(max(-offset, 0)))
        elif d == second:
            out.append(along.shifted(max(offset, 0)))
        else:
            out.append(next(rest))
    return tuple(out)


def _unfold(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    rank = len(_source_type(node).shape)
    if rank == 0:
        return ()
    dim = _wrap(node.args[1], rank)
    step = node.args[3]
    return index[:dim] + (index[dim].times(step).plus(index[-1]),) + index[dim + 1 : -1]


def _strided_view(node: Node, output: int, index: IndexMap, sizes: Sizes) -> IndexMap:
    source, offset = _source_type(node), _argument(node, 3, "offset", 0)
    if node.outputs[output].type.numel == 0:
        return (Affine(),) * len(source.shape)
    if not source.is_contiguous or source.numel == 0:
        raise NotAffine
    reach = sum((size - 1) * stride for size, stride in zip(node.args[1], node.args[2], strict=True))
    if not 0 <= offset <= offset + reach < source.numel:
        raise NotAffine  # elements of the memory around it
    linear = Affine(offset)
    for form, stride in zip(index, node.args[2], strict=True):
        linear = linear.plus(form.times(stride))
    if not source.shape:
        return ()
    return digits(linear, source.shape, sizes)


def digit_margins(node: Node, index: IndexMap, sizes: Sizes) -> list[int]:
    """How far from the end of its dimension `index`, into the input of a view, stays at least, in each dimension whose
    end another one continues at: the index holds as long as none of these is negative. None for other views."""
    source = _source_type(node).shape
    if node.op is strided_view:
        inner = [*range(1, len(source))]
    elif VIEW_RULES[node.op] is _reshape and 0 not in source:
        inner = [dim for _, dims in _aligned(node.outputs[0].type.shape, source) for dim in dims[1:]]
    else:
        return []
    return [source[dim] - 1 - index[dim].bounds(sizes)[1] for dim in inner]


def _rules() -> dict[Any, Rule]:
    rules: dict[Any, Rule] = {
        aten.permute.default: _permute,
        aten.transpose.int: _transpose,
        aten.t.default: _t,
        aten.expand.default: _expand,
        aten.unsqueeze.default: _unsqueeze,
        aten.select.int: _select,
        aten.slice.Tensor: _slice,
        aten.flip.default: _flip,
        aten.split.Tensor: _split,
        aten.split_with_sizes.default: _split,
        aten.unbind.int: _unbind,
        aten.diagonal.default: _diagonal,
        aten.unfold.default: _unfold,
        strided_view: _strided_view,
    }
    for op in (aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default, aten.reshape.default):
        rules[op] = _reshape
    for op in (aten.alias.default, aten.detach.default, aten.lift_fresh.default):
        rules[op] = _same
    for op in (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims):
        rules[op] = _squeeze
    return rules


VIEW_RULES: Final[Mapping[Any, Rule]] = _rules()

REVERSALS: Final[frozenset[Any]] = frozenset({aten.flip.default})
"""Ops that only re-index, but for which ATen makes a copy: no strides run backwards."""


def strides_of(index: Sequence[Affine], strides: tuple[int, ...], axes: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """(offset, strides) in elements of a view whose element (axes...) lives at `index` of a buffer with `strides`."""
    offset = 0
    steps = dict.fromkeys(axes, 0)
    for form, stride in zip(index, strides, strict=True):
        offset += form.offset * stride
        for axis, coefficient in form.terms:
            steps[axis] += coefficient * stride
    return offset, tuple(steps[a] for a in axes)


@dataclass(slots=True)
class Views:
    """Looks through the views of one Graph.

    producers: the node that defines each Value. opaque: view nodes that no affine index can follow; their results
        count as memory of their own.
    """

    producers: Mapping[Value, Node]
    opaque: dict[Node, None] = field(default_factory=dict)

    def transparent(self, value: Value) -> Node | None:
        """The view node that defines `value`, unless it is opaque; None when `value` is no view."""
        node = self.producers.get(value)
        return node if node is not None and is_view(node) and node not in self.opaque else None

    def base(self, value: Value) -> Value:
        """The Value behind a chain of views."""
        while (node := self.transparent(value)) is not None:
            value = view_source(node)
        return value

    def require(self, value: Value) -> Value:
        """The base of a Value that somebody reads as a tensor. Re-indexings that are no views of memory, on the way
        to it, become opaque: sizes and strides cannot express them."""
        while (node := self.transparent(value)) is not None:
            if node.op in REVERSALS:
                self.opaque[node] = None
            else:
                value = view_source(node)
        return value

    def follow(
        self, value: Value, index: IndexMap, sizes: Sizes, margins: list[int] | None = None
    ) -> tuple[Value, IndexMap]:
        """The base of `value`, and where in it the element `index` lives. margins: see `digit_margins`; those of the
        views on the way are appended.

        Raises NotAffine when splitting an axis would help; a view that nothing helps becomes opaque. An axis that
        stands for a place that data decide, whose number is negative, cannot be split.
        """
        while (node := self.transparent(value)) is not None:
            try:
                index = pull_index(node, node.outputs.index(value), index, sizes)
            except NotAffine as obstacle:
                if obstacle.split is not None and obstacle.split.axis >= 0:
                    raise
                self.opaque[node] = None
                continue
            if margins is not None:
                margins.extend(digit_margins(node, index, sizes))
            value = view_source(node)
        return value, index
