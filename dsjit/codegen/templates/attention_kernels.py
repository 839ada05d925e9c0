"""Attention as Kernels: forward, and the gradients of query, key and value.

One outer point is one row of the result (one key, for the gradients of key and value). The row of its scores is kept
from block to block: what these Kernels mean takes memory for a row, never for a matrix of scores. Emitters go along the
row in tiles, and add up the parts as they come (Dao et al., FlashAttention, 2022, and FlashAttention-2, 2023; Milakov
and Gimelshein, Online normalizer calculation for softmax, 2018).

The score of a query and a key is any scalar expression of their product and of what lies in memory: scale, bias, mask.

    for b in parallel(batch):
        for m in parallel(rows):
            for n in range(keys):
                for e in range(features):
                    s = reduce_sum(query[b, m, e] * key[b, n, e], over=(e))
            for n in range(keys):
                kept = reduce_sum(score(s), over=())
                top = reduce_max(score(s))
            for n in range(keys):
                weight = reduce_sum(exp(kept - top), over=())
                total = reduce_sum(exp(kept - top))
            for d in range(channels):
                for n in range(keys):
                    o = reduce_sum(weight * value[b, n, d], over=(n))
            for d in range(channels):
                out[b, m, d] = o / total
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from dsjit.codegen.nest import map_indices
from dsjit.ir.graph import Source
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
    Reduce,
    Stmt,
    Store,
    known,
)

__all__ = [
    "PRODUCT",
    "Attention",
    "Place",
    "Scoring",
    "combine_kernel",
    "delta_kernel",
    "forward_kernel",
    "key_value_gradient_kernel",
    "query_gradient_kernel",
    "split_keys",
]

f32: Final = torch.float32

PRODUCT: Final = "a_product"
"""The name of the product of a query and a key, in float32, as the statements of a score call it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an operand lies: `param[index]`, over the axes of the `Attention`."""

    param: str
    index: Index
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Scoring:
    """A product of queries and keys, added up along `features`, which a score calls `product`."""

    query: Place
    key: Place
    features: Axis
    product: str


@dataclass(frozen=True, slots=True)
class Attention:
    """`softmax(score(query @ key.T)) @ value`.

    batch, rows, keys: axes of the scores. features: the axis of the product of a query and a key; channels: of the
        result. heads: those of `batch` along which the queries of a group share keys and values.
    score: the statements that make `scored` of `PRODUCT`, over batch, rows and keys. params: what they read.
    guarded: whether a row of nothing but -inf gives 0, and not NaN.
    scale: the derivative of the score by the product, when that is a number.
    more: further products that the score reads. counts: where keys are in parts, the number of a key, and how many keys
        there are: those beyond do not count.
    """

    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    keys: tuple[Axis, ...]
    features: Axis
    channels: Axis
    query: Place
    key: Place
    value: Place
    score: tuple[Stmt, ...]
    scored: str
    params: tuple[Param, ...]
    guarded: bool
    precision: MatrixPrecision
    source: Source
    heads: tuple[Axis, ...] = ()
    scale: float | None = None
    more: tuple[Scoring, ...] = ()
    counts: tuple[Index, int] | None = None


@dataclass(slots=True)
class _Body:
    """Statements of one block. Every name that is made here begins with `prefix`."""

    prefix: str
    source: Source
    statements: list[Stmt] = field(default_factory=list)

    def load(self, place: Place, name: str, counts: tuple[Index, int] | None = None) -> str:
        """The element in float32; 0 where it does not count."""
        result, mask = f"{self.prefix}_{name}", None
        if counts is not None:
            mask = f"{self.prefix}_{name}_counts"
            self.statements.append(InRange(mask, counts[0], 0, counts[1]))
        self.statements.append(Load(result, place.param, place.index, place.dtype, mask))
        return self.cast(f"{name}_wide", result, place.dtype, f32)

    def cast(self, name: str, arg: str, source: torch.dtype, to: torch.dtype) -> str:
        if source is to:
            return arg
        self.statements.append(Cast(f"{self.prefix}_{name}", arg, to))
        return f"{self.prefix}_{name}"

    def op(self, name: str, result: str, *args: str, dtype: torch.dtype = f32) -> str:
        self.statements.append(Apply(f"{self.prefix}_{result}", name, args, dtype, self.source))
        return f"{self.prefix}_{result}"

    def number(self, name: str, value: float) -> str:
        self.statements.append(Constant(f"{self.prefix}_{name}", value, f32))
        return f"{self.prefix}_{name}"

    def keep(self, name: str, arg: str) -> str:
        """For later blocks over the same axes."""
        self.statements.append(Reduce(f"{self.prefix}_{name}", "sum", arg, f32, None, self.source, None, ()))
        return f"{self.prefix}_{name}"

    def guard(self, name: str, arg: str, unless: float, then: float) -> str:
        """`arg`, or `then` where it is `unless`."""
        is_so = self.op("eq", f"{name}_is", arg, self.number(f"{name}_unless", unless), dtype=torch.bool)
        return self.op("select", name, is_so, self.number(f"{name}_then", then), arg)

    def store(self, place: Place, arg: str) -> None:
        stored = self.cast(f"{place.param}_stored", arg, f32, place.dtype)
        self.statements.append(Store(place.param, place.index, stored))

    def block(self, *axes: Axis) -> Block:
        return Block(axes, tuple(self.statements))


def _dot(
    a: Attention, prefix: str, result: str, left: Place | str, right: Place, axes: Sequence[Axis], over: Sequence[Axis]
) -> Block:
    """A block that adds up `left * right`. left: what was kept is rounded to the dtype of `right`, for matrix units."""
    body = _Body(prefix, a.source)
    if isinstance(left, Place):
        first = body.load(left, "left")
    else:
        rounded = body.cast("left_rounded", left, f32, right.dtype)
        first = body.cast("left_wide", rounded, right.dtype, f32)
    product = body.op("mul", "multiplied", first, body.load(right, "right", a.counts))
    names = tuple([axis.name for axis in over])
    body.statements.append(Reduce(result, "sum", product, f32, None, a.source, a.precision, names))
    return body.block(*axes)


def forward_kernel(attention: Attention, name: str, out: Place, logarithm: Place | None) -> Kernel:
    """The Kernel that stores the result and, if wanted, the logarithm of the sum of the exponentials of each row."""
    a = attention
    scores = _Body("a", a.source, list(a.score))
    further = [
        _dot(a, f"q{n}", each.product, each.query, each.key, (*a.keys, each.features), (each.features,))
        for n, each in enumerate(a.more)
    ]
    kept = scores.keep("kept", a.scored)
    scores.statements.append(Reduce("a_top", "max", a.scored, f32, None, a.source))
    blocks = [_dot(a, "q", PRODUCT, a.query, a.key, (*a.keys, a.features), (a.features,))]
    blocks += [*further, scores.block(*a.keys)]
    top = "a_top"
    if a.guarded:
        between = _Body("g", a.source)
        top = between.guard("top", top, -math.inf, 0.0)
        blocks.append(between.block())
    weights = _Body("w", a.source)
    exponential = weights.op("exp", "exponential", weights.op("sub", "shifted", kept, top))
    weight = weights.keep("weight", exponential)
    weights.statements.append(Reduce("w_total", "sum", exponential, f32, None, a.source))
    blocks.append(weights.block(*a.keys))
    blocks.append(_dot(a, "v", "v_sum", weight, a.value, (a.channels, *a.keys), a.keys))
    finish = _Body("f", a.source)
    if logarithm is not None:
        finish.store(logarithm, finish.op("add", "logarithm", finish.op("log", "log", "w_total"), top))
    total = finish.guard("total", "w_total", 0.0, 1.0) if a.guarded else "w_total"
    if finish.statements:
        blocks.append(finish.block())
    last = _Body("o", a.source)
    last.store(out, last.op("div", "result", "v_sum", total))
    blocks.append(last.block(a.channels))
    written = [Param(place.param, place.dtype, "write") for place in (out, logarithm) if place is not None]
    read = [a.query, a.key, *[place for each in a.more for place in (each.query, each.key)], a.value]
    return _kernel(a, name, (*a.batch, *a.rows), blocks, read, written)


def split_keys(a: Attention, parts: int) -> Attention:
    """Attention to each of `parts` stretches of keys on its own, the number of which is a last axis of the batch, "s".

    `combine_kernel` makes one of their results (Dao et al., Flash-Decoding, 2023). There is one axis of keys.
    """
    (keys,) = a.keys
    size = known(keys.size)
    length = -(-size // parts)
    number = Index(0, (("s", length), (keys.name, 1)))

    def moved(index: Index) -> Index:
        step = known(index.coefficient(keys.name))
        return Index(index.offset, (*index.terms, ("s", step * length))) if step else index

    def place(where: Place) -> Place:
        return replace(where, index=moved(where.index))

    score, scored = list(map_indices(Block((), a.score), moved).body), a.scored
    counts = None
    if length * parts != size:
        counts = number, size
        body = _Body("c", a.source)
        body.statements.append(InRange("c_counts", number, 0, size))
        score = [*body.statements, *[_within(statement, keys.name) for statement in score]]
        scored = body.op("select", "score", "c_counts", a.scored, body.number("nothing", -math.inf))
        score += body.statements[1:]
    more = tuple([replace(each, key=place(each.key)) for each in a.more])
    return replace(
        a, batch=(*a.batch, Axis("s", parts)), keys=(Axis(keys.name, length),), key=place(a.key), value=place(a.value),
        score=tuple(score), scored=scored, guarded=True, more=more, counts=counts,
    )  # fmt: skip


def _within(statement: Stmt, axis: str) -> Stmt:
    """Loads along the axis stay where there are keys. What a score loads under a mask of its own stays there."""
    if isinstance(statement, Load) and statement.mask is None and statement.index.coefficient(axis):
        return replace(statement, mask="c_counts")
    return statement


def combine_kernel(a: Attention, parts: Axis, name: str, part: Place, logarithm: Place, out: Place) -> Kernel:
    """One result of those of the parts of `split_keys`, which are in float32. a: before it was split.

    parts: the axis of the parts, over which `part` and `logarithm` lie, too. Where no key counts, the result is 0, or
        NaN when it is not guarded.
    """
    first = _Body("l", a.source)
    top = first.load(logarithm, "logarithm")
    first.statements.append(Reduce("l_top", "max", top, f32, None, a.source))
    between = _Body("g", a.source)
    shift = between.guard("top", "l_top", -math.inf, 0.0)
    second = _Body("w", a.source)
    less = second.op("sub", "shifted", second.load(logarithm, "logarithm"), shift)
    weight = second.op("exp", "weight", less)
    product = second.op("mul", "multiplied", weight, second.load(part, "part"))
    second.statements.append(Reduce("w_total", "sum", weight, f32, None, a.source))
    second.statements.append(Reduce("w_sum", "sum", product, f32, None, a.source))
    last = _Body("o", a.source)
    total = last.guard("total", "w_total", 0.0, 1.0) if a.guarded else "w_total"
    last.store(out, last.op("div", "result", "w_sum", total))
    blocks = (first.block(parts), between.block(), second.block(parts), last.block())
    outer = (*a.batch, *a.rows, a.channels)
    params = (*_reads([logarithm, part], []), Param(out.param, out.dtype, "write"))
    return Kernel(name, params, outer, blocks, a.channels.name)


def delta_kernel(attention: Attention, name: str, gradient: Place, out: Place, delta: Place) -> Kernel:
    """Sums of `gradient * out` along the channels, for each row: what the gradients of the scores are less."""
    a = attention
    body = _Body("d", a.source)
    product = body.op("mul", "multiplied", body.load(gradient, "gradient"), body.load(out, "out"))
    body.statements.append(Reduce("d_sum", "sum", product, f32, None, a.source))
    store = Block((), (Store(delta.param, delta.index, "d_sum"),))
    params = (*_reads([gradient, out], []), Param(delta.param, delta.dtype, "write"))
    return Kernel(name, params, (*a.batch, *a.rows), (body.block(a.channels), store), a.channels.name)


def query_gradient_kernel(
    attention: Attention, name: str, gradient: Place, logarithm: Place, delta: Place, result: Place
) -> Kernel:
    """The gradient of the query, of that of the result. logarithm: as the forward stores it. delta: see there."""
    a = attention
    first = _Body("r", a.source)
    shift = first.guard("shift", first.load(logarithm, "logarithm"), -math.inf, 0.0)
    less = first.load(delta, "delta")
    blocks = [
        first.block(),
        _dot(a, "q", PRODUCT, a.query, a.key, (*a.keys, a.features), (a.features,)),
        _weights(a, shift, a.keys),
        _dot(a, "v", "v_sum", gradient, a.value, (*a.keys, a.channels), (a.channels,)),
        _score_gradients(a, less, a.keys),
        _dot(a, "k", "k_sum", "x_gradient", a.key, (a.features, *a.keys), a.keys),
    ]
    last = _Body("o", a.source)
    last.store(result, "k_sum")
    blocks.append(last.block(a.features))
    read = [a.query, a.key, a.value, gradient, logarithm, delta]
    written = [Param(result.param, result.dtype, "write")]
    return _kernel(a, name, (*a.batch, *a.rows), blocks, read, written)


def key_value_gradient_kernel(
    attention: Attention, name: str, gradient: Place, logarithm: Place, delta: Place, key: Place, value: Place
) -> Kernel:
    """The gradients of key and value, stored at `key` and `value`. Others: as `query_gradient_kernel` has them."""
    a = attention
    rows = (*a.heads, *a.rows)
    own = _Body("r", a.source)
    shift = own.guard("shift", own.load(logarithm, "logarithm"), -math.inf, 0.0)
    weights = _weights(a, shift, rows)
    less = _Body("l", a.source)
    delta_name = less.load(delta, "delta")
    gradients = _score_gradients(a, delta_name, rows)
    blocks = [
        _dot(a, "k", PRODUCT, a.key, a.query, (*rows, a.features), (a.features,)),
        Block(rows, (*own.statements, *weights.body)),
        _dot(a, "g", "g_sum", "x_weight", gradient, (a.channels, *rows), rows),
        _dot(a, "v", "v_sum", a.value, gradient, (*rows, a.channels), (a.channels,)),
        Block(rows, (*less.statements, *gradients.body)),
        _dot(a, "q", "q_sum", "x_gradient", a.query, (a.features, *rows), rows),
    ]
    for place, result, axis in ((key, "q_sum", a.features), (value, "g_sum", a.channels)):
        last = _Body("o", a.source)
        last.store(place, result)
        blocks.append(last.block(axis))
    outer = (*[axis for axis in a.batch if axis not in a.heads], *a.keys)
    read = [a.query, a.key, a.value, gradient, logarithm, delta]
    written = [Param(place.param, place.dtype, "write") for place in (key, value)]
    return _kernel(a, name, outer, blocks, read, written)


def _weights(a: Attention, shift: str, axes: tuple[Axis, ...]) -> Block:
    """The weight of each key, by the logarithm of their sum."""
    body = _Body("x", a.source, list(a.score))
    exponential = body.op("exp", "exponential", body.op("sub", "shifted", a.scored, shift))
    body.keep("weight", exponential)
    return body.block(*axes)


def _score_gradients(a: Attention, delta: str, axes: tuple[Axis, ...]) -> Block:
    """The gradient of each product of a query and a key."""
    body = _Body("x", a.source)
    gradient = body.op("mul", "weighted", "x_weight", body.op("sub", "centred", "v_sum", delta))
    assert a.scale is not None
    if a.scale != 1:
        gradient = body.op("mul", "scaled", gradient, body.number("scale", a.scale))
    body.keep("gradient", gradient)
    return body.block(*axes)


def _kernel(
    a: Attention, name: str, outer: tuple[Axis, ...], blocks: Sequence[Block], read: Sequence[Place],
    written: Sequence[Param],
) -> Kernel:  # fmt: skip
    return Kernel(name, (*_reads(read, a.params), *written), outer, tuple(blocks), outer[-1].name)


def _reads(places: Sequence[Place], others: Sequence[Param]) -> tuple[Param, ...]:
    found = {place.param: Param(place.param, place.dtype, "read") for place in places}
    found.update({param.name: param for param in others})
    return tuple(found.values())
