"""Attention as Kernels: calls of scaled_dot_product_attention and their gradients, and attention that is written out.

Written out, attention is a product, a kernel that ends in a softmax over rows, and another product. What that kernel
does before the softmax (scale, bias, mask, cap) becomes the score, statement by statement.

Before:
    t7 = aten.bmm.default(x0, t6)                  # a library call
    fused: t7 -> softmax(t7 * 0.125 + x3)          # a Kernel over the rows of t7
    t9 = aten.bmm.default(t8, x4)                  # a library call
After:
    attention: x0, t6, x3, x4 -> t9                # a Kernel of `attention_kernels`; t7 and t8 are never in memory
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Final, TypeAlias

import torch

from dsjit.codegen.gemm import Matrix, matrix_of
from dsjit.codegen.templates.attention_kernels import (
    PRODUCT,
    Attention,
    Place,
    delta_kernel,
    forward_kernel,
    key_value_gradient_kernel,
    query_gradient_kernel,
)
from dsjit.codegen.templates.product import cut_axes
from dsjit.codegen.templates.softmax import softmax_of
from dsjit.fusion.affine import Affine, NotAffine, linearize
from dsjit.fusion.lower import FusedKernel, kernel_name
from dsjit.fusion.planner import LibraryUnit
from dsjit.fusion.views import Views
from dsjit.ir.graph import Node, TensorType, Value, contiguous_strides
from dsjit.ir.kernel import (
    Apply,
    Axis,
    Block,
    Cast,
    Constant,
    Index,
    InRange,
    Kernel,
    Load,
    MatrixPrecision,
    Param,
    Stmt,
    known,
)
from dsjit.ops.binding import bind

__all__ = ["ATTENTION_OPS", "FusedAttention", "fuse_attention"]

aten = torch.ops.aten

Unit: TypeAlias = FusedKernel | LibraryUnit

f32: Final = torch.float32
_DTYPES: Final = frozenset({torch.float32, torch.bfloat16, torch.float16})

_LARGEST_HEAD: Final = 256
"""Elements of a head; tiles of larger ones do not fit into registers."""

_FORWARD: Final = frozenset(
    {
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    }
)
_BACKWARD: Final = frozenset(
    {
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
        aten._scaled_dot_product_flash_attention_backward.default,
        aten._scaled_dot_product_efficient_attention_backward.default,
        aten._scaled_dot_product_cudnn_attention_backward.default,
    }
)
ATTENTION_OPS: Final = _FORWARD | _BACKWARD
_PRODUCTS: Final = frozenset({aten.mm.default, aten.bmm.default})


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """Attention that may become Kernels. replaced: the units that stand for it now, in order. replacing: what would.

    saves_traffic: whether something would no longer pass through memory.
    """

    replaced: tuple[Unit, ...]
    replacing: tuple[FusedKernel, ...]
    saves_traffic: bool

    @property
    def node(self) -> Node:
        """The first op of a library's that is replaced."""
        return next(unit.node for unit in self.replaced if isinstance(unit, LibraryUnit))


def fuse_attention(
    units: Sequence[Unit],
    views: Views,
    results: Sequence[Value],
    precision: MatrixPrecision,
    prefers: Callable[[FusedAttention], bool],
    next_id: int,
) -> list[Unit]:
    """`units`, with that attention as Kernels that `prefers` says yes to.

    results, precision: as `fuse_products` takes them. next_id: above the ids of all Values.
    """
    readers: dict[Value, list[Unit]] = {}
    for unit in units:
        reads = unit.reads if isinstance(unit, FusedKernel) else tuple(unit.node.inputs())
        for value in dict.fromkeys(map(views.base, reads)):
            readers.setdefault(value, []).append(unit)
    kept = {views.base(value) for value in results}
    producers = {value: unit for unit in units if isinstance(unit, LibraryUnit) for value in unit.node.outputs}
    found: dict[Unit, tuple[FusedKernel, ...]] = {}
    for unit in units:
        choice: FusedAttention | None = None
        if isinstance(unit, FusedKernel):
            choice = _written_out(unit, views, readers, producers, kept, precision)
        elif unit.node.op in ATTENTION_OPS:
            unread = frozenset([v for v in unit.node.outputs if v not in readers and v not in kept])
            choice = _called(unit, views, unread, precision, next_id)
            next_id += 1
        if choice is not None and prefers(choice):
            found.update(dict.fromkeys(choice.replaced, ()))
            found[choice.replaced[-1]] = choice.replacing
    return [new for unit in units for new in found.get(unit, (unit,))]


# -- calls -----------------------------------------------------------------------------------------------------------


def _called(
    unit: LibraryUnit, views: Views, unread: frozenset[Value], precision: MatrixPrecision, next_id: int
) -> FusedAttention | None:
    node = unit.node
    call = _Call.of(node, views, precision)
    if call is None:
        return None
    kernels = call.backward(unread, next_id) if node.op in _BACKWARD else call.forward(unread)
    masked = call.mask is not None
    return None if kernels is None else FusedAttention((unit,), kernels, masked)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of scaled_dot_product_attention, or of its backward. values: of the params, by name."""

    node: Node
    views: Views
    attention: Attention
    values: Mapping[str, Value]
    mask: Value | None

    @staticmethod
    def of(node: Node, views: Views, precision: MatrixPrecision) -> _Call | None:
        """None for what Kernels do not take: dropout, large heads, empty or mixed operands."""
        bound = bind(node)
        query, key, value = (bound[name] for name in ("query", "key", "value"))
        mask = bound.get("attn_mask") if "attn_mask" in bound else bound.get("attn_bias")
        types = [each.type for each in (query, key, value)]
        if bound["dropout_p"] or any(len(type_.shape) != 4 or 0 in type_.shape for type_ in types):
            return None
        if len({type_.dtype for type_ in types}) > 1 or types[0].dtype not in _DTYPES:
            return None
        (batch, heads, rows, features), (_, groups, keys, _), (*_, channels) = (type_.shape for type_ in types)
        if heads % groups or types[2].shape[1] != groups or max(features, channels) > _LARGEST_HEAD:
            return None
        shared = Axis("u", heads // groups)
        outer = (Axis("b", batch), Axis("g", groups), *([shared] if shared.size != 1 else []))
        values: dict[str, Value] = {}
        finder = _Finder(views, values, shared.size if isinstance(shared.size, int) else 1)
        operands = ((query, "bhme"), (key, "bgne"), (value, "bgnd"))
        places = [finder.place(each, letters) for each, letters in operands]
        scale = bound["scale"] if bound.get("scale") is not None else 1 / math.sqrt(features)
        body: list[Stmt] = []
        score = PRODUCT
        if scale != 1:
            body.append(Constant("a_scale", float(scale), f32))
            body.append(Apply("a_scaled", "mul", (PRODUCT, "a_scale"), f32, node.source))
            score = "a_scaled"
        params: tuple[Param, ...] = ()
        if mask is not None:
            lacking = 4 - len(mask.type.shape)
            place = finder.place(mask, "bhmn"[lacking:])
            if place is None:
                return None
            params = (Param(place.param, place.dtype, "read"),)
            score = _masked(body, score, place, node)
        if bound["is_causal"]:
            body.append(InRange("a_seen", Index(0, (("n", 1), ("m", -1))), -rows, 1))
            score = _chosen(body, "a_seen", score, node)
        if places[0] is None or places[1] is None or places[2] is None:
            return None
        attention = Attention(
            outer, (Axis("m", rows),), (Axis("n", keys),), Axis("e", features), Axis("d", channels),
            places[0], places[1], places[2], tuple(body), score, params, True, precision, node.source,
            (shared,) if shared.size != 1 else (), float(scale),
        )  # fmt: skip
        return _Call(node, views, attention, values, mask)

    def forward(self, unread: frozenset[Value]) -> tuple[FusedKernel, ...] | None:
        """None where results are read that the Kernel does not make."""
        out, logarithm, *others = self.node.outputs
        if not unread.issuperset(others):
            return None
        values = dict(self.values)
        finder = self._finder(values)
        stored = finder.place(out, "bhmd")
        sums = None if logarithm in unread else finder.place(logarithm, "bhm")
        if stored is None or (sums is None and logarithm not in unread):
            return None
        if sums is not None and logarithm.type.shape != out.type.shape[:3]:
            return None
        kernel = forward_kernel(self.attention, kernel_name((self.node,)), stored, sums)
        return (_fused(kernel, values, self.node),)

    def backward(self, unread: frozenset[Value], next_id: int) -> tuple[FusedKernel, ...] | None:
        bound = bind(self.node)
        gradient = bound["grad_out"] if "grad_out" in bound else bound["grad_out_"]
        out, logarithm = bound["out"], bound["logsumexp"]
        d_query, d_key, d_value, *others = self.node.outputs
        if not unread.issuperset(others) or unread & {d_query, d_key, d_value}:
            return None
        batch, heads, rows, _ = out.type.shape
        if logarithm.type.shape != (batch, heads, rows):
            return None
        shape = (batch, heads, rows)
        delta = Value(next_id, TensorType(shape, f32, contiguous_strides(shape), out.type.device))
        values = dict(self.values)
        finder = self._finder(values)
        wanted = ((gradient, "bhmd"), (out, "bhmd"), (logarithm, "bhm"), (delta, "bhm"), (d_query, "bhme"),
                  (d_key, "bgne"), (d_value, "bgnd"))  # fmt: skip
        places = [place for value, letters in wanted if (place := finder.place(value, letters)) is not None]
        if len(places) < len(wanted):
            return None
        grad, result, sums, less, to_query, to_key, to_value = places
        name = kernel_name((self.node,))
        kernels = (
            delta_kernel(self.attention, f"{name}_delta", grad, result, less),
            query_gradient_kernel(self.attention, f"{name}_query", grad, sums, less, to_query),
            key_value_gradient_kernel(self.attention, f"{name}_key_value", grad, sums, less, to_key, to_value),
        )
        return tuple([_fused(kernel, values, self.node) for kernel in kernels])

    def _finder(self, values: dict[str, Value]) -> _Finder:
        return _Finder(self.views, values, prod([known(axis.size) for axis in self.attention.heads]))


@dataclass(frozen=True, slots=True)
class _Finder:
    """values: what is found, by the names of params. shared: heads that share a key."""

    views: Views
    values: dict[str, Value]
    shared: int

    def place(self, value: Value, letters: str) -> Place | None:
        """Where the element at axes of these names lies. A head `h` is `g * shared + u`; one element is repeated."""
        try:
            base, index = self.views.follow(value, (Affine(),) * len(value.type.shape), {})
        except NotAffine:
            return None
        terms: list[tuple[str, int]] = []
        for letter, size, stride in zip(letters, value.type.shape, value.type.strides, strict=True):
            if size == 1 or not stride:
                continue
            if letter == "h":
                terms += [("g", stride * self.shared)] + ([("u", stride)] if self.shared > 1 else [])
            else:
                terms.append((letter, stride))
        param = f"t{base.id}"
        self.values[param] = base
        return Place(param, Index(linearize(index, base.type.strides).offset, tuple(terms)), base.type.dtype)


def _masked(body: list[Stmt], score: str, place: Place, node: Node) -> str:
    """The score under a mask: a bool one says what counts, another one is added."""
    body.append(Load("a_mask", place.param, place.index, place.dtype))
    if place.dtype is torch.bool:
        return _chosen(body, "a_mask", score, node)
    name = "a_mask"
    if place.dtype is not f32:
        body.append(Cast("a_mask_wide", "a_mask", f32))
        name = "a_mask_wide"
    body.append(Apply("a_biased", "add", (score, name), f32, node.source))
    return "a_biased"


def _chosen(body: list[Stmt], inside: str, score: str, node: Node) -> str:
    body.append(Constant("a_nothing", -inf, f32))
    body.append(Apply("a_counted", "select", (inside, score, "a_nothing"), f32, node.source))
    return "a_counted"


def _fused(kernel: Kernel, values: Mapping[str, Value], *nodes: Node) -> FusedKernel:
    return FusedKernel(kernel, tuple([values[param.name] for param in kernel.params]), nodes)


# -- written out -----------------------------------------------------------------------------------------------------


def _written_out(
    unit: FusedKernel,
    views: Views,
    readers: Mapping[Value, Sequence[Unit]],
    producers: Mapping[Value, LibraryUnit],
    kept: set[Value],
    precision: MatrixPrecision,
) -> FusedAttention | None:
    """Attention whose softmax is in `unit`."""
    softmax = softmax_of(unit.kernel)
    if softmax is None:
        return None
    (weights,) = unit.writes
    first = [value for value in unit.reads if value in producers and producers[value].node.op in _PRODUCTS]
    second = readers.get(weights, [])
    if len(first) != 1 or len(second) != 1 or weights in kept or first[0] in kept or readers[first[0]] != [unit]:
        return None
    scores, before, after = first[0], producers[first[0]], second[0]
    if not isinstance(after, LibraryUnit) or after.node.op not in _PRODUCTS or after.view or before.view:
        return None
    if views.base(after.node.args[0]) is not weights or views.base(after.node.args[1]) is weights:
        return None
    places = [matrix_of(value, views) for value in (*before.node.args[:2], *after.node.args[:2])]
    out = after.node.output
    query, key, left, value = places
    if query is None or key is None or left is None or value is None:
        return None
    dtypes = {place.base.type.dtype for place in (query, key, left, value)} | {out.type.dtype}
    if len(dtypes) > 1 or not dtypes <= _DTYPES or not (scores.type.is_contiguous and out.type.is_contiguous):
        return None
    *lead, rows, keys = scores.type.shape
    features, channels = before.node.args[0].type.shape[-1], out.type.shape[-1]
    dense = (left.offset, left.row, left.column) == (0, keys, 1) and left.batch in (0, rows * keys)
    if not dense or max(features, channels) > _LARGEST_HEAD or 0 in (*lead, rows, keys, features, channels):
        return None
    if after.node.args[0].type.shape != scores.type.shape:
        return None
    param = next(p.name for v, p in zip(unit.values, unit.kernel.params, strict=True) if v is scores)
    cut = cut_axes(softmax.axes, Block((), softmax.statements), param, (keys, rows * keys))
    if cut is None:
        return None
    axes, body, index = cut
    steps = {axis: known(index.coefficient(axis.name)) for axis in axes}
    if index.offset or sorted(steps.values()) != _dense_steps(sorted(steps, key=lambda axis: steps[axis])):
        return None
    if prod([known(axis.size) for axis in axes]) != scores.type.numel:
        return None
    order = sorted(axes, key=lambda axis: -steps[axis])
    parts = [[a for a in order if low <= steps[a] < high] for low, high in
             ((rows * keys, inf), (keys, rows * keys), (0, keys))]  # fmt: skip
    if {axis.name for axis in parts[2]} & {axis.name for axis in unit.kernel.outer}:
        return None
    rows_axes = tuple(parts[1]) or (Axis("a_row", 1),)

    def place(where: Matrix, part: Sequence[tuple[Sequence[Axis], int, int]], last: str, stride: int) -> Place:
        terms = [(a.name, steps[a] // unit_step * step) for group, unit_step, step in part for a in group]
        terms.append((last, stride))
        whole = Index(where.offset, tuple([(name, step) for name, step in terms if step]))
        return Place(f"t{where.base.id}", whole, where.base.type.dtype)

    batch, row, column = parts
    lead_step = rows * keys
    attention = Attention(
        tuple(batch), rows_axes, tuple(column) or (Axis("a_key", 1),),
        Axis("e", features), Axis("d", channels),
        place(query, ((batch, lead_step, query.batch), (row, keys, query.row)), "e", query.column),
        place(key, ((batch, lead_step, key.batch), (column, 1, key.column)), "e", key.row),
        place(value, ((batch, lead_step, value.batch), (column, 1, value.row)), "d", value.column),
        _scores(body.body, param, before.node), softmax.score,
        tuple([p for p in unit.kernel.params if p.access == "read" and p.name != param]),
        softmax.guarded, precision, before.node.source,
    )  # fmt: skip
    terms = [(a.name, steps[a] // lead_step * rows * channels) for a in batch]
    terms += [*[(a.name, steps[a] // keys * channels) for a in row], ("d", 1)]
    stored = Place(f"t{out.id}", Index(0, tuple(terms)), out.type.dtype)
    nodes = (before.node, *unit.nodes, after.node)
    kernel = forward_kernel(attention, kernel_name(nodes), stored, None)
    values = dict(zip([p.name for p in unit.kernel.params], unit.values, strict=True))
    values.update((f"t{where.base.id}", where.base) for where in (query, key, value))
    values[stored.param] = out
    replaced = (before, unit, after)
    return FusedAttention(replaced, (_fused(kernel, values, *nodes),), True)


def _dense_steps(axes: Sequence[Axis]) -> list[int]:
    """Of a row-major buffer over these axes, the fastest first."""
    steps = [1]
    for axis in axes[:-1]:
        steps.append(steps[-1] * known(axis.size))
    return steps


def _scores(body: Sequence[Stmt], param: str, node: Node) -> tuple[Stmt, ...]:
    """The statements of a score, with the product in place of what was loaded; it is rounded where eager rounds it."""
    found: list[Stmt] = []
    for statement in body:
        if isinstance(statement, Load) and statement.param == param:
            statement = Cast(statement.result, PRODUCT, statement.dtype)
        found.append(statement)
    return tuple(found)
