"""What a Kernel of kept rows is to an emitter that goes along the rows in tiles: which loop does what.

Such a Kernel (`codegen.templates.attention_kernels` makes them) has sums over some axes of a block (`Reduce.over`).
Those over short axes are products of a row that is held with each row that streams by; those over the streamed axes are
added up from tile to tile. Where weights are exponentials less the largest score, the sums so far are scaled whenever a
larger score comes (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, prod

import torch

from dsjit.codegen.operands import axes_of, narrow_operand, operand_statements
from dsjit.ir.kernel import Apply, Axis, Block, Check, Constant, IndexValue, InRange, Kernel, Reduce, Stmt, Store, known

__all__ = ["Band", "Dot", "Online", "Stream", "stream_of"]


@dataclass(frozen=True, slots=True)
class Dot:
    """A sum of products. left: the statements that make the held operand, and its name; where these are none, a kept
    row of that name. right: of what streams by. short: the axis that is not streamed over. inner: whether that is the
    axis of the sum."""

    left: tuple[tuple[Stmt, ...], str]
    right: tuple[tuple[Stmt, ...], str]
    reduce: Reduce
    short: Axis
    inner: bool
    operand: torch.dtype


@dataclass(frozen=True, slots=True)
class Online:
    """Weights `exp(score - top)` and their sum. shift: what `top` is called where it is subtracted."""

    score: str
    top: str
    shift: str
    weight: str
    total: str


@dataclass(frozen=True, slots=True)
class Band:
    """Outside of `low <= stream * position + row + offset < high`, where position is 1 or -1 and row counts with the
    other sign, all weights are 0."""

    position: int
    offset: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Stream:
    """batch, rows: the outer axes; those of `rows` are held by one program. repeats: streamed axes that are looped over
    one by one; along: the last one, in tiles.

    before, after: blocks outside of the loop. loop: what is in it, in order. band: which keys count, if that is known.
    """

    kernel: Kernel
    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    repeats: tuple[Axis, ...]
    along: Axis
    before: tuple[Block, ...]
    loop: tuple[Dot | Block, ...]
    after: tuple[Block, ...]
    online: Online | None
    band: Band | None

    @property
    def dots(self) -> tuple[Dot, ...]:
        return tuple([each for each in self.loop if isinstance(each, Dot)])

    @property
    def operand(self) -> torch.dtype:
        """Of the products."""
        return self.dots[0].operand

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Elements along batch, rows and stream."""
        batch, rows = (prod([known(axis.size) for axis in axes]) for axes in (self.batch, self.rows))
        return batch, rows, known(self.along.size) * prod([known(axis.size) for axis in self.repeats])


_PACKED = 32
"""Rows below which those of several heads share a program."""


def stream_of(kernel: Kernel) -> Stream | None:
    """How the Kernel streams; None when it keeps no rows, or is of another form."""
    reduces = [s for block in kernel.blocks for s in block.body if isinstance(s, Reduce)]
    kept = next((s for s in reduces if s.over == ()), None)
    if kept is None or kernel.sizes:
        return None
    axes = next(block.axes for block in kernel.blocks if kept in block.body)
    names = tuple([axis.name for axis in axes])
    before: list[Block] = []
    loop: list[Dot | Block] = []
    after: list[Block] = []
    for block in kernel.blocks:
        if set(names) <= {axis.name for axis in block.axes}:
            step = block if block.axes == axes else _dot(block, names)
            if step is None:
                return None
            loop.append(step)
        else:
            (after if loop else before).append(block)
    first = next((step for step in loop if isinstance(step, Dot)), None)
    if first is None or not first.inner or len({step.operand for step in loop if isinstance(step, Dot)}) > 1:
        return None
    tops = [s for s in reduces if s.kind == "max" and s.over is None]
    online = _online(loop, after, tops[0]) if tops else None
    if bool(tops) != (online is not None) or len(tops) > 1:
        return None
    shared = axes_of(first.right[0])
    held = [axis for axis in kernel.outer if axis.name not in shared and axis.size != 1] or list(kernel.outer[-1:])
    if known(held[-1].size) >= _PACKED:
        held = held[-1:]
    batch = tuple([axis for axis in kernel.outer if axis not in held])
    band = _band(loop, held[0].name, axes[-1].name) if len(held) == 1 else None
    return Stream(
        kernel, batch, tuple(held), axes[:-1], axes[-1], tuple(before), tuple(loop), tuple(after), online, band
    )


def _dot(block: Block, stream: tuple[str, ...]) -> Dot | None:
    *body, reduce = block.body
    short = [axis for axis in block.axes if axis.name not in stream]
    if not isinstance(reduce, Reduce) or reduce.matrix is None or len(short) != 1:
        return None
    made = {s.result: s for s in body if not isinstance(s, Store | Reduce | Check)}
    product = made.get(reduce.arg)
    if not isinstance(product, Apply) or product.op != "mul" or reduce.over not in ((short[0].name,), stream):
        return None
    left, right = (narrow_operand(arg, made) for arg in product.args)
    operand = made[right]
    assert not isinstance(operand, Store | Check | IndexValue | InRange)
    sides = [(tuple(operand_statements(name, made).values()), name) for name in (left, right)]
    return Dot(sides[0], sides[1], reduce, short[0], reduce.over != stream, operand.dtype)


def _online(loop: list[Dot | Block], after: list[Block], top: Reduce) -> Online | None:
    """The block of the weights, if it is what it should be: `exp(kept - shift)`, kept and added up."""
    blocks = [step for step in loop if isinstance(step, Block)]
    if len(blocks) != 2:
        return None
    scores, weights = blocks
    if [type(s) for s in weights.body] != [Apply, Apply, Reduce, Reduce] or scores.body[-1] is not top:
        return None
    kept = {s.result: s.arg for s in scores.body if isinstance(s, Reduce) and s.over == ()}
    less, exponential, weight, total = weights.body
    assert isinstance(less, Apply) and isinstance(exponential, Apply)
    assert isinstance(weight, Reduce) and isinstance(total, Reduce)
    if (less.op, exponential.op, kept.get(less.args[0])) != ("sub", "exp", top.arg):
        return None
    if (weight.over, total.kind, total.over) != ((), "sum", None) or {weight.arg, total.arg} != {exponential.result}:
        return None
    return Online(top.arg, top.result, less.args[1], weight.result, total.result)


def _band(loop: Iterable[Dot | Block], row: str, along: str) -> Band | None:
    """By a select in the last steps of the score that gives -inf outside of a range of `along` less `row`."""
    block = next((step for step in loop if isinstance(step, Block)), None)
    if block is None:
        return None
    made = {s.result: s for s in block.body if not isinstance(s, Store | Reduce | Check)}
    for statement in made.values():
        if not isinstance(statement, Apply) or statement.op != "select" or not _is_score(statement, made, block):
            continue
        inside, other = made.get(statement.args[0]), made.get(statement.args[2])
        if isinstance(inside, InRange) and isinstance(other, Constant) and other.value == -inf:
            index = inside.index
            steps = known(index.coefficient(along)), known(index.coefficient(row))
            if steps in ((1, -1), (-1, 1)) and len(index.terms) == 2:
                return Band(steps[0], known(index.offset), known(inside.low), known(inside.high))
    return None


def _is_score(statement: Apply, made: Mapping[str, Stmt], block: Block) -> bool:
    """Whether a weight is 0 where `statement` is -inf: it is the score, or a sum or a choice on the way to it is."""
    wanted = next((s.arg for s in block.body if isinstance(s, Reduce) and s.over == ()), None)
    scored = made.get(wanted) if wanted is not None else None
    if isinstance(scored, Apply) and scored.op == "exp":
        less = made.get(scored.args[0])
        scored = made.get(less.args[0]) if isinstance(less, Apply) else None
    return scored is statement
