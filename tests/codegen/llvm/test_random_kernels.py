"""Random small Kernels: LLVM leaves in memory, bit for bit, what the interpreter leaves.

Loads are of small whole numbers, so that sums are exact in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsjit.ir.kernel import (
    Apply,
    Axis,
    Block,
    Cast,
    Constant,
    Index,
    IndexValue,
    InRange,
    Kernel,
    Load,
    Param,
    Reduce,
    Stmt,
    Store,
)
from tests.codegen.kernels import generic, outputs, run_compiled, run_interpreted

f32, i64, boolean = torch.float32, torch.int64, torch.bool
STORED = (f32, torch.float64, torch.bfloat16, torch.float16, i64, torch.int32, torch.int16, torch.int8, boolean)
COMPUTED = (f32, torch.float64, i64, torch.int32)
SIZES = (1, 2, 3, 5, 16, 17, 33, 70)
POINTS = 400
"""At most so many points of a block, for the interpreter's sake."""


@dataclass
class Draft:
    """A Kernel under construction."""

    draw: st.DrawFn
    params: list[Param] = field(default_factory=list)
    extents: dict[str, int] = field(default_factory=dict)
    results: int = 0

    def axes(self, names: list[str], points: int) -> tuple[Axis, ...]:
        """Axes of sizes whose product stays within `points`; the last one is drawn first, and so is the longest."""
        sizes: list[int] = []
        for _ in names:
            sizes.append(self.draw(st.sampled_from([size for size in SIZES if size <= max(points, 1)])))
            points //= sizes[-1]
        return tuple(Axis(name, size) for name, size in zip(names, reversed(sizes), strict=True))

    def fresh(self) -> str:
        self.results += 1
        return f"v{self.results}"

    def index(self, axes: tuple[Axis, ...], dense: bool) -> tuple[Index, int]:
        """An index over axes in any order, and how many elements the buffer needs; `dense`: every point its own."""
        order = self.draw(st.permutations(axes))
        step, offset, terms = 1, 0, []
        for axis in order:
            if not dense and self.draw(st.integers(0, 3)) == 0:
                continue
            sign = 1 if dense else self.draw(st.sampled_from([1, 1, 1, -1]))
            terms.append((axis.name, sign * step))
            offset += (axis.size - 1) * step if sign < 0 else 0
            step *= max(axis.size, 1) * (1 if dense else self.draw(st.sampled_from([1, 1, 2])))
        return Index(offset, tuple(terms)), max(step, 1) + offset

    def param(self, dtype: torch.dtype, access: str, size: int) -> str:
        name = f"p{len(self.params)}"
        self.params.append(Param(name, dtype, access))  # type: ignore[arg-type]
        self.extents[name] = size
        return name

    def load(self, axes: tuple[Axis, ...], body: list[Stmt], want: torch.dtype) -> str:
        dtype = self.draw(st.sampled_from(STORED))
        index, size = self.index(axes, dense=False)
        name, mask, other = self.fresh(), None, 0
        if axes and self.draw(st.integers(0, 3)) == 0:
            mask = self.fresh()
            low = self.draw(st.integers(0, size))
            body.append(InRange(mask, index, low, low + self.draw(st.integers(0, size))))
            other = self.draw(st.integers(0, 1))
        body.append(Load(name, self.param(dtype, "read", size), index, dtype, mask, other))
        return self.cast(name, dtype, want, body)

    def cast(self, name: str, have: torch.dtype, want: torch.dtype, body: list[Stmt]) -> str:
        if have is want:
            return name
        result = self.fresh()
        body.append(Cast(result, name, want))
        return result

    def value(self, axes: tuple[Axis, ...], body: list[Stmt], dtype: torch.dtype, known: list[str], depth: int) -> str:
        """The name of a random expression in `dtype`; known: float32 results that may be used."""
        kind = self.draw(st.integers(0, 7)) if depth else self.draw(st.integers(0, 3))
        if kind == 0 and known:
            return self.cast(self.draw(st.sampled_from(known)), f32, dtype, body)
        if kind == 1 and axes:
            index, _ = self.index(axes, dense=False)
            at = self.fresh()
            body.append(IndexValue(at, index))
            bounded = self.fresh()
            body += [Constant(f"{bounded}c", 7, i64), Apply(bounded, "and", (at, f"{bounded}c"), i64)]
            return self.cast(bounded, i64, dtype, body)
        if kind == 2:
            result = self.fresh()
            body.append(Constant(result, self.draw(st.integers(-3, 3)), dtype))
            return result
        if kind <= 4:
            return self.load(axes, body, dtype)
        a, b = (self.value(axes, body, dtype, known, depth - 1) for _ in range(2))
        result = self.fresh()
        if kind == 5:
            condition = self.fresh()
            body.append(Apply(condition, self.draw(st.sampled_from(["lt", "eq", "ge", "ne"])), (a, b), boolean))
            body.append(Apply(result, "select", (condition, a, b), dtype))
        else:
            op = self.draw(st.sampled_from(["add", "sub", "maximum", "minimum"]))
            body.append(Apply(result, op, (a, b), dtype))
        return result

    def store(self, axes: tuple[Axis, ...], body: list[Stmt], name: str, have: torch.dtype) -> None:
        dtype = self.draw(st.sampled_from((f32, torch.bfloat16, torch.float16, i64, torch.uint8, boolean)))
        index, size = self.index(axes, dense=True)
        stored = self.cast(name, have, dtype, body)
        body.append(Store(self.param(dtype, "write", size), index, stored))

    def reduce(
        self, axes: tuple[Axis, ...], body: list[Stmt], name: str, dtype: torch.dtype
    ) -> tuple[str, torch.dtype]:
        kind = self.draw(st.sampled_from(["sum", "max", "min", "any", "all", "argmax", "argmin"]))
        result = self.fresh()
        if kind in ("any", "all"):
            body.append(Reduce(result, kind, self.cast(name, dtype, boolean, body), boolean))
            return result, boolean
        if kind == "sum":
            dtype, name = (i64, self.cast(name, dtype, i64, body)) if dtype is torch.int32 else (dtype, name)
        if kind in ("sum", "max", "min"):
            body.append(Reduce(result, kind, name, dtype))
            return result, dtype
        terms, step = [], 1
        for axis in reversed(axes):
            terms.append((axis.name, step))
            step *= axis.size
        body.append(Reduce(result, kind, name, i64, Index(0, tuple(reversed(terms)))))
        return result, i64


@st.composite
def kernels(draw: st.DrawFn) -> tuple[Kernel, dict[str, int]]:
    draft = Draft(draw)
    along_outer = draw(st.booleans())
    outer_rank = draw(st.integers(1 if along_outer else 0, 2))
    outer = draft.axes([f"o{n}" for n in range(outer_rank)], 70 if along_outer else 5)
    points = POINTS // math.prod(axis.size for axis in outer)
    blocks: list[Block] = []
    known: list[str] = []
    vector_axis = outer[-1].name if along_outer else "lane"
    for number in range(draw(st.integers(1, 3))):
        rank = draw(st.integers(0 if along_outer or number else 1, 2))
        inner = draft.axes([f"i{number}", "lane" if not along_outer else f"j{number}"][2 - rank :], points)
        dtype = draw(st.sampled_from(COMPUTED))
        body: list[Stmt] = []
        result = draft.value(outer + inner, body, dtype, known, 2)
        reduced = None
        if inner and draw(st.booleans()):
            reduced = draft.reduce(inner, body, result, dtype)
        else:
            draft.store(outer + inner, body, result, dtype)
        blocks.append(Block(inner, tuple(body)))
        if reduced is not None:
            tail: list[Stmt] = []
            name = draft.cast(*reduced, f32, tail) if reduced[1] is not f32 else reduced[0]
            known.append(name)
            draft.store(outer, tail, name, f32)
            blocks.append(Block((), tuple(tail)))
    return Kernel("k", tuple(draft.params), outer, tuple(blocks), vector_axis), draft.extents


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(kernels(), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_llvm_equals_the_interpreter(case, seed, pieces):
    kernel, extents = case
    generator = torch.Generator().manual_seed(seed)
    inputs, results = [], []
    for param in kernel.params:
        numbers = torch.randint(-4, 5, (extents[param.name],), generator=generator)
        (inputs if param.access == "read" else results).append(numbers.to(param.dtype))
    order = sorted(range(len(kernel.params)), key=lambda i: kernel.params[i].access != "read")
    kernel = replace(kernel, params=tuple(kernel.params[i] for i in order))
    for expected, actual in zip(*outputs(kernel, inputs, results, pieces=pieces), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(kernels(), st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from([3, 64, 100_000]))
def test_a_kernel_for_any_size_equals_the_one_for_this_size(case, seed, pieces, typical):
    kernel, extents = case
    generator = torch.Generator().manual_seed(seed)
    buffers = [
        torch.randint(-4, 5, (extents[param.name],), generator=generator).to(param.dtype) for param in kernel.params
    ]
    expected, interpreted, actual = ([buffer.clone() for buffer in buffers] for _ in range(3))
    run_interpreted(kernel, *expected)
    any_size, sizes = generic(kernel, typical)
    run_interpreted(any_size, *interpreted, sizes=sizes)
    run_compiled(any_size, *actual, sizes=sizes, pieces=pieces)
    for one, two, three in zip(expected, interpreted, actual, strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(three, one, rtol=0, atol=0, equal_nan=True)
