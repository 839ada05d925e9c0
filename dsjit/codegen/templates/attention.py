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
    Scoring,
    combine_kernel,
    delta_kernel,
    forward_kernel,
    key_value_gradient_kernel,
    query_gradient_kernel,
    split_keys,
)
from dsjit.codegen.templates.points import cut_axes
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

_LARGEST_HEAD: Final = 512
"""Elements of a head; tiles of larger ones do not fit into registers. Half of that for gradients."""

_LARGEST_EXACT_HEAD: Final = 128
"""For gradients in exact float32, whose products ordinary units compute from registers."""

_PROGRAMS: Final = 128
"""Fewer programs than that leave processors without work: then keys are split among them."""

_ROWS: Final = 64
"""Rows of a program, about."""

_LEAST_KEYS: Final = 256
"""Of a part."""

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

    def note(unit: Unit) -> None:
        reads = unit.reads if isinstance(unit, FusedKernel) else tuple(unit.node.inputs())
        for value in dict.fromkeys(map(views.base, reads)):
            readers.setdefault(value, []).append(unit)

    for unit in units:
        note(unit)
    kept = {views.base(value) for value in results}
    producers = {value: unit for unit in units if isinstance(unit, LibraryUnit) for value in unit.node.outputs}
    found: dict[Unit, tuple[FusedKernel, ...]] = {}
    # Gradients first: as Kernels, they do not read the seeds that a forward which is a Kernel does not make.
    for unit in sorted(units, key=lambda unit: isinstance(unit, FusedKernel) or unit.node.op not in _BACKWARD):
        choice: FusedAttention | None = None
        if isinstance(unit, FusedKernel):
            choice = _written_out(unit, views, readers, producers, kept, precision, next_id)
        elif unit.node.op in ATTENTION_OPS:
            unread = frozenset([v for v in unit.node.outputs if not readers.get(v) and v not in kept])
            choice = _called(unit, views, unread, precision, next_id)
        next_id += 2 if choice is not None else 0
        if choice is not None and prefers(choice):
            found.update(dict.fromkeys(choice.replaced, ()))
            found[choice.replaced[-1]] = choice.replacing
            for each in readers.values():
                each[:] = [reader for reader in each if reader not in choice.replaced]
            for kernel in choice.replacing:
                note(kernel)
    return [new for unit in units for new in found.get(unit, (unit,))]


# -- calls -----------------------------------------------------------------------------------------------------------


def _called(
    unit: LibraryUnit, views: Views, unread: frozenset[Value], precision: MatrixPrecision, next_id: int
) -> FusedAttention | None:
    node = unit.node
    call = _Call.of(node, views, precision)
    if call is None:
        return None
    kernels = call.backward(unread, next_id) if node.op in _BACKWARD else call.forward(unread, next_id)
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

    def forward(self, unread: frozenset[Value], next_id: int) -> tuple[FusedKernel, ...] | None:
        """None where results are read that the Kernel does not make."""
        out, logarithm, *others = self.node.outputs
        if not unread.issuperset(others):
            return None
        values = dict(self.values)
        finder = self._finder(values)
        stored = finder.place(out, "bhmd")
        sums = None if logarithm in unread else finder.sums(logarithm, out)
        if stored is None or (sums is None and logarithm not in unread):
            return None
        if sums is None:
            return _forward(self.attention, stored, values, (self.node,), next_id)
        kernel = forward_kernel(self.attention, kernel_name((self.node,)), stored, sums)
        return (_fused(kernel, values, self.node),)

    def backward(self, unread: frozenset[Value], next_id: int) -> tuple[FusedKernel, ...] | None:
        bound = bind(self.node)
        gradient = bound["grad_out"] if "grad_out" in bound else bound["grad_out_"]
        out, logarithm = bound["out"], bound["logsumexp"]
        d_query, d_key, d_value, *others = self.node.outputs
        if not unread.issuperset(others) or unread & {d_query, d_key, d_value}:
            return None
        *lead, channels = out.type.shape
        exact = out.type.dtype is f32 and self.attention.precision == "exact"
        if max(channels, d_query.type.shape[-1]) > (_LARGEST_EXACT_HEAD if exact else _LARGEST_HEAD // 2):
            return None
        shape = tuple(lead)
        delta = Value(next_id, TensorType(shape, f32, contiguous_strides(shape), out.type.device))
        values = dict(self.values)
        finder = self._finder(values)
        sums = finder.sums(logarithm, out)
        wanted = ((gradient, "bhmd"), (out, "bhmd"), (delta, "bhm"), (d_query, "bhme"), (d_key, "bgne"),
                  (d_value, "bgnd"))  # fmt: skip
        places = [place for value, letters in wanted if (place := finder.place(value, letters)) is not None]
        if len(places) < len(wanted) or sums is None:
            return None
        grad, result, less, to_query, to_key, to_value = places
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

    def sums(self, value: Value, out: Value) -> Place | None:
        """Of the logarithms of rows' sums, with cuDNN's dimension more; None for the efficient kernel's rounded up."""
        shape = value.type.shape
        if shape[:3] != out.type.shape[:3] or shape[3:] not in ((), (1,)):
            return None
        return self.place(value, "bhm1"[: len(shape)])


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


def _forward(
    attention: Attention, out: Place, values: Mapping[str, Value], nodes: tuple[Node, ...], next_id: int
) -> tuple[FusedKernel, ...]:
    """One Kernel, or two where there are few rows and many keys: parts of the result, and what combines them."""
    name = kernel_name(nodes)
    parts = _parts(attention)
    if parts == 1:
        return (_fused(forward_kernel(attention, name, out, None), values, *nodes),)
    outer = (*attention.batch, Axis("s", parts), *attention.rows)
    shape = tuple([known(axis.size) for axis in (*outer, attention.channels)])
    device = values[out.param].type.device
    made: list[Place] = []
    known_values = dict(values)
    for number, axes in enumerate(((*outer, attention.channels), outer)):
        sizes = shape[: len(axes)]
        strides = contiguous_strides(sizes)
        value = Value(next_id + number, TensorType(sizes, f32, strides, device))
        terms = [(axis.name, step) for axis, step in zip(axes, strides, strict=True) if axis.size != 1]
        made.append(Place(f"t{value.id}", Index(0, tuple(terms)), f32))
        known_values[made[-1].param] = value
    part, logarithm = made
    kernels = (
        forward_kernel(split_keys(attention, parts), f"{name}_parts", part, logarithm),
        combine_kernel(attention, Axis("s", parts), f"{name}_combined", part, logarithm, out),
    )
    return tuple([_fused(kernel, known_values, *nodes) for kernel in kernels])


def _parts(attention: Attention) -> int:
    """Into how many parts the keys are cut, so that all processors have work."""
    if len(attention.keys) > 1:
        return 1
    heads = prod([known(axis.size) for axis in attention.heads])
    batch = prod([known(axis.size) for axis in attention.batch]) // heads
    rows = prod([known(axis.size) for axis in attention.rows]) * heads
    programs = batch * -(-rows // _ROWS)
    return max(1, min(_PROGRAMS // programs, known(attention.keys[0].size) // _LEAST_KEYS))


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
    next_id: int,
) -> FusedAttention | None:
    """Attention whose softmax is in `unit`."""
    softmax = softmax_of(unit.kernel)
    if softmax is None:
        return None
    (weights,) = unit.writes
    first = [value for value in unit.reads if value in producers and producers[value].node.op in _PRODUCTS]
    second = readers.get(weights, [])
    if not first or len(second) != 1 or weights in kept:
        return None
    if any(value in kept or readers[value] != [unit] or producers[value].view for value in first):
        return None
    after, scores = second[0], first[0].type
    if not isinstance(after, LibraryUnit) or after.node.op not in _PRODUCTS or after.view:
        return None
    left, value = (matrix_of(arg, views) for arg in after.node.args[:2])
    sides = [[matrix_of(arg, views) for arg in producers[each].node.args[:2]] for each in first]
    out = after.node.output
    if left is None or value is None or left.base is not weights or value.base is weights:
        return None
    *lead, rows, keys = scores.shape
    channels = out.type.shape[-1]
    dense = (left.offset, left.row, left.column) == (0, keys, 1) and left.batch in (0, rows * keys)
    if not dense or after.node.args[0].type.shape != scores.shape or 0 in (*lead, rows, keys, channels):
        return None
    dtypes = {side.base.type.dtype for pair in sides for side in pair if side is not None}
    dtypes |= {scores.dtype, value.base.type.dtype, left.base.type.dtype, out.type.dtype}
    if len(dtypes) > 1 or not dtypes <= _DTYPES or not out.type.is_contiguous:
        return None
    params = {each: next(p.name for v, p in zip(unit.values, unit.kernel.params, strict=True) if v is each)
              for each in first}  # fmt: skip
    cut = cut_axes(softmax.axes, Block((), softmax.statements), params[first[0]], (keys, rows * keys))
    if cut is None:
        return None
    axes, body, index = cut
    steps = {axis: known(index.coefficient(axis.name)) for axis in axes}
    order = sorted(axes, key=lambda axis: -steps[axis])
    if index.offset or list(reversed([steps[axis] for axis in order])) != _dense_steps(order[::-1]):
        return None
    loads = [s.index for s in body.body if isinstance(s, Load) and s.param in params.values()]
    if prod([known(axis.size) for axis in axes]) != scores.numel or any(each != index for each in loads):
        return None
    batch, row, column = [
        [a for a in order if low <= steps[a] < high]
        for low, high in ((rows * keys, inf), (keys, rows * keys), (0, keys))
    ]
    if {axis.name for axis in column} & {axis.name for axis in unit.kernel.outer}:
        return None

    def place(where: Matrix, across: Sequence[Axis], unit_step: int, stride: int, last: str, along: int) -> Place:
        terms = [(a.name, steps[a] // (rows * keys) * where.batch) for a in batch]
        terms += [*[(a.name, steps[a] // unit_step * stride) for a in across], (last, along)]
        whole = Index(where.offset, tuple([(name, step) for name, step in terms if step]))
        return Place(f"t{where.base.id}", whole, where.base.type.dtype)

    scorings: list[Scoring] = []
    for number, (each, pair) in enumerate(zip(first, sides, strict=True)):
        query, key = pair
        features = producers[each].node.args[0].type.shape[-1]
        if query is None or key is None or each.type != scores or max(features, channels) > _LARGEST_HEAD:
            return None
        # Where the values are the keys (latent attention), they are loaded once.
        same = (key.base, key.offset, key.column, key.row) == (value.base, value.offset, value.row, value.column)
        same = same and (key.batch == value.batch or not batch)
        axis = Axis("d" if same and features == channels else f"e{number or ''}", features)
        scorings.append(
            Scoring(
                place(query, row, keys, query.row, axis.name, query.column),
                place(key, column, 1, key.column, axis.name, key.row), axis, f"{PRODUCT}{number or ''}",
            )
        )  # fmt: skip
    nodes = (*[producers[each].node for each in first], *unit.nodes, after.node)
    names = {params[each]: scoring.product for each, scoring in zip(first, scorings, strict=True)}
    attention = Attention(
        tuple(batch), tuple(row) or (Axis("a_row", 1),), tuple(column) or (Axis("a_key", 1),), scorings[0].features,
        Axis("d", channels), scorings[0].query, scorings[0].key, place(value, column, 1, value.row, "d", value.column),
        _scores(body.body, names), softmax.score,
        tuple([p for p in unit.kernel.params if p.access == "read" and p.name not in names]),
        softmax.guarded, precision, nodes[0].source, more=tuple(scorings[1:]),
    )  # fmt: skip
    terms = [(a.name, steps[a] // (rows * keys) * rows * channels) for a in batch]
    terms += [*[(a.name, steps[a] // keys * channels) for a in row], ("d", 1)]
    stored = Place(f"t{out.id}", Index(0, tuple(terms)), out.type.dtype)
    values = dict(zip([p.name for p in unit.kernel.params], unit.values, strict=True))
    values.update((f"t{side.base.id}", side.base) for pair in sides for side in pair if side is not None)
    values.update({f"t{value.base.id}": value.base, stored.param: out})
    replaced: tuple[Unit, ...] = (*[producers[each] for each in first], unit, after)
    return FusedAttention(replaced, _forward(attention, stored, values, nodes, next_id), True)


def _dense_steps(axes: Sequence[Axis]) -> list[int]:
    """Of a row-major buffer over these axes, the fastest first."""
    steps = [1]
    for axis in axes[:-1]:
        steps.append(steps[-1] * known(axis.size))
    return steps


def _scores(body: Sequence[Stmt], products: Mapping[str, str]) -> tuple[Stmt, ...]:
    """The statements of a score, with the products in place of what was loaded; they are rounded where eager does."""
    found: list[Stmt] = []
    for statement in body:
        if isinstance(statement, Load) and statement.param in products:
            statement = Cast(statement.result, products[statement.param], statement.dtype)
        found.append(statement)
    return tuple(found)
