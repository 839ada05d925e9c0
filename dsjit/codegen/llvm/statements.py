"""Statements of a Kernel, in LLVM IR, at one place of the loop nest: for one scalar or for several vectors at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import torch

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand
from dsjit.codegen.llvm.casts import cast_value
from dsjit.codegen.llvm.loops import add, i64, multiply, static, subtract
from dsjit.codegen.llvm.math import MATH
from dsjit.codegen.llvm.memory import (
    Mask,
    gather_lanes,
    load_lanes,
    load_scalar,
    prefetch,
    store_lanes,
    store_scalar,
)
from dsjit.codegen.llvm.reductions import accumulate
from dsjit.codegen.llvm.spellings import Spelling
from dsjit.codegen.llvm.target import Target
from dsjit.codegen.llvm.types import MEMORY_TYPES, constant, lane_numbers, number, splat, vector
from dsjit.ir.kernel import (
    Apply,
    Cast,
    Check,
    Constant,
    Gathered,
    Index,
    IndexValue,
    InRange,
    Load,
    Reduce,
    Size,
    SizeParam,
    Stmt,
    Store,
)

__all__ = ["Front", "StatementEmitter", "fits_in_i32"]

_FAR_BYTES: Final = 512
_ITERATIONS_AHEAD: Final = 8
"""From which distance on the next iteration's memory is asked for, and how early: some 100 ns (measured on AVX-512)."""

Accumulators = dict[str, list[list[Operand]]]
"""By result name of a Reduce: an accumulator for each copy."""


@dataclass(frozen=True, slots=True)
class Front:
    """The vectors that are being computed side by side ("copies").

    axis: the axis along which their lanes run, and along which the copies follow each other.
    masks: for each copy, its active lanes; None when all are.
    joined: whether reductions join the lanes (inactive ones must then not count).
    """

    axis: str
    masks: tuple[Mask | None, ...]
    joined: bool


@dataclass(slots=True)
class StatementEmitter:
    """Prints statements, and keeps what is known at the place that is being printed.

    params, param_dtypes: by name, the address and dtype of a buffer.
    flag: the address of what a failing check sets.
    sizes: by name, the value of a size that is a parameter. extents: by axis, its size.
    varying: the results that differ from lane to lane. dtypes: of every result.
    spellings: how ops without vector math are written.
    positions: by axis in scope, outermost first, its value (i64); of the lanes' axis, the value in the first lane of
        the first copy.
    values: by name, one Operand that serves every copy, or one a copy. Scalars serve all lanes.
    splats, pointers, offsets: what has been computed already, by scalar, address and affine form.
    """

    b: FunctionBuilder
    target: Target
    params: dict[str, Operand]
    param_dtypes: dict[str, torch.dtype]
    extents: dict[str, Size]
    varying: frozenset[str]
    dtypes: dict[str, torch.dtype]
    spellings: Mapping[str, Spelling]
    flag: Operand | None = None
    sizes: dict[str, Operand] = field(default_factory=dict)
    front: Front | None = None
    positions: dict[str, Operand] = field(default_factory=dict)
    values: dict[str, tuple[Operand, ...]] = field(default_factory=dict)
    splats: dict[str, Operand] = field(default_factory=dict)
    pointers: dict[tuple[object, ...], Operand] = field(default_factory=dict)
    offsets: dict[tuple[Size, tuple[tuple[str, Size], ...]], Operand] = field(default_factory=dict)
    accumulators: Accumulators = field(default_factory=dict)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What is computed inside a loop or a branch is forgotten at its end."""
        saved = (self.front, self.positions, self.values, self.splats, self.pointers, self.offsets, self.accumulators)
        self.positions, self.values, self.splats = dict(self.positions), dict(self.values), dict(self.splats)
        self.pointers, self.offsets = dict(self.pointers), dict(self.offsets)
        yield
        (self.front, self.positions, self.values, self.splats, self.pointers, self.offsets, self.accumulators) = saved

    # Values

    def size(self, size: Size) -> Operand:
        """The size, as i64."""
        return self.sizes[size.name] if isinstance(size, SizeParam) else i64(size)

    def scalar(self, name: str) -> Operand:
        return self.values[name][0]

    def lanes_of(self, name: str, copy: int) -> Operand:
        """The value as a vector, for one copy."""
        operands = self.values[name]
        return self.widen(operands[copy if len(operands) > 1 else 0])

    def widen(self, a: Operand) -> Operand:
        """A vector with `a` in each lane; `a` itself when it is a vector."""
        if a.type.startswith("<"):
            return a
        count = self.target.lanes
        if not a.text.startswith("%"):
            return splat(count, a)
        known = self.splats.get(a.text)
        if known is None:
            whole = vector(count, a.type)
            first = self.b.assign(whole, f"insertelement {whole} poison, {a}, i32 0")
            known = self.b.assign(whole, f"shufflevector {first}, {whole} poison, <{count} x i32> zeroinitializer")
            self.splats[a.text] = known
        return known

    # Addresses and affine forms

    def _terms(self, index: Index) -> tuple[tuple[str, Size], ...]:
        """The terms whose axes are in scope, outermost first."""
        if len(index.terms) < 2:
            return index.terms if not index.terms or index.terms[0][0] in self.positions else ()
        coefficients = dict(index.terms)
        return tuple((axis, coefficients[axis]) for axis in self.positions if axis in coefficients)

    def affine(self, index: Index) -> Operand:
        """The index, as i64; in the first copy's first lane."""
        return self._affine(index.offset, self._terms(index))

    def _affine(self, offset: Size, terms: tuple[tuple[str, Size], ...]) -> Operand:
        if not terms:
            return self.size(offset)
        known = self.offsets.get((offset, terms))
        if known is None:
            axis, coefficient = terms[-1]
            step = multiply(self.b, self.positions[axis], self.size(coefficient))
            known = add(self.b, step, self._affine(offset, terms[:-1]))
            self.offsets[offset, terms] = known
        return known

    def pointer(self, param: str, dtype: torch.dtype, index: Index, gathered: Gathered = ()) -> Operand:
        """The address of the element; of the first copy's first lane. gathered: what is the same in all lanes."""
        return self._pointer(param, MEMORY_TYPES[dtype], index.offset, self._terms(index), gathered)

    def _pointer(
        self, param: str, type_: str, offset: Size, terms: tuple[tuple[str, Size], ...], gathered: Gathered
    ) -> Operand:
        key = (param, offset, terms, gathered)
        known = self.pointers.get(key)
        if known is None:
            if terms:
                axis, coefficient = terms[-1]
                outer = self._pointer(param, type_, offset, terms[:-1], gathered)
                known = self.b.offset(outer, type_, multiply(self.b, self.positions[axis], self.size(coefficient)))
            else:
                known = self.b.offset(self.params[param], type_, self.size(offset))
                for name, coefficient in gathered:
                    known = self.b.offset(known, type_, multiply(self.b, self.scalar(name), self.size(coefficient)))
            self.pointers[key] = known
        return known

    def prepare(self, statements: Sequence[Stmt]) -> None:
        """Computes, as far as the axes in scope allow, the addresses that deeper loops will need."""
        for statement in statements:
            if isinstance(statement, Load | Store):
                gathered = self._same_in_lanes(statement) if isinstance(statement, Load) else ()
                if all(name in self.values for name, _ in gathered):
                    self.pointer(statement.param, self.param_dtypes[statement.param], statement.index, gathered)

    def _same_in_lanes(self, load: Load) -> Gathered:
        """What is gathered by numbers that all lanes share."""
        return tuple([term for term in load.gathered if term[0] not in self.varying])

    def _lane_pointers(
        self, param: str, dtype: torch.dtype, index: Index, gathered: Gathered = ()
    ) -> Iterator[tuple[int, Operand]]:
        """For each copy, the address of its first lane's element."""
        assert self.front is not None
        first = self.pointer(param, dtype, index, gathered)
        step = self.size(index.coefficient(self.front.axis))
        for copy in range(len(self.front.masks)):
            distance = multiply(self.b, step, copy * self.target.lanes)
            yield copy, self.b.offset(first, MEMORY_TYPES[dtype], distance)

    # Statements

    def emit(self, statement: Stmt) -> None:
        match statement:
            case Apply():
                self._apply(statement)
            case Load():
                self._load(statement)
            case Store():
                self._store(statement)
            case Constant():
                self.values[statement.result] = (self._constant(statement),)
            case Cast():
                source = self.dtypes[statement.arg]
                self.values[statement.result] = tuple(
                    cast_value(self.b, self.target, a, source, statement.dtype) for a in self.values[statement.arg]
                )
            case IndexValue():
                self._index_value(statement)
            case InRange():
                self._in_range(statement)
            case Reduce():
                self._reduce(statement)
            case Check():
                self._check(statement)

    def _constant(self, statement: Constant) -> Operand:
        if not isinstance(statement.value, SizeParam):
            return constant(statement.value, statement.dtype)
        return cast_value(self.b, self.target, self.size(statement.value), torch.int64, statement.dtype)

    def _spell(self, op: str, dtype: torch.dtype, args: list[Operand]) -> Operand:
        spelling = self.spellings.get(op)
        return spelling(self.b, dtype, args) if spelling is not None else MATH[op](self.b, self.target, args)

    def _apply(self, statement: Apply) -> None:
        dtype = self.dtypes[statement.args[-1]]
        if statement.result not in self.varying:
            args = [self.scalar(name) for name in statement.args]
            self.values[statement.result] = (self._spell(statement.op, dtype, args),)
            return
        assert self.front is not None
        self.values[statement.result] = tuple(
            self._spell(statement.op, dtype, [self.lanes_of(name, copy) for name in statement.args])
            for copy in range(len(self.front.masks))
        )

    def _load(self, statement: Load) -> None:
        shared = self._same_in_lanes(statement)
        if statement.result not in self.varying:
            pointer = self.pointer(statement.param, statement.dtype, statement.index, shared)
            condition = None if statement.mask is None else self.scalar(statement.mask)
            loaded = load_scalar(self.b, statement.dtype, pointer, condition, statement.other)
            self.values[statement.result] = (loaded,)
            return
        assert self.front is not None
        step = self._step(statement.index)
        own = tuple([term for term in statement.gathered if term not in shared])
        vectors: list[Operand] = []
        for copy, pointer in self._lane_pointers(statement.param, statement.dtype, statement.index, shared):
            mask = self.front.masks[copy]
            if statement.mask is not None:
                condition = self.lanes_of(statement.mask, copy)
                mask = Mask(condition) if mask is None else mask.both(self.b, condition)
            if own:
                places = self._lane_places(own, step, copy)
                loaded = gather_lanes(self.b, self.target, statement.dtype, pointer, places, mask, statement.other)
            else:
                self._prefetch(pointer, statement.dtype, statement.index, write=False)
                loaded = load_lanes(self.b, self.target, statement.dtype, pointer, step, mask, statement.other)
            vectors.append(loaded)
        self.values[statement.result] = tuple(vectors)

    def _lane_places(self, gathered: Gathered, step: int | Operand, copy: int) -> Operand:
        """How many elements after the first lane's address each lane's lies, as i64: what is gathered, and the step
        from lane to lane."""
        count = self.target.lanes
        terms: list[Operand] = []
        for name, coefficient in gathered:
            numbers = self.lanes_of(name, copy)
            factor = self.widen(self.size(coefficient))
            terms.append(numbers if coefficient == 1 else self.b.binary("mul", numbers, factor))
        if isinstance(step, Operand):
            terms.append(self.b.binary("mul", lane_numbers(count, 1, "i64"), self.widen(step)))
        elif step:
            terms.append(lane_numbers(count, step, "i64"))
        places = terms[0]
        for term in terms[1:]:
            places = self.b.binary("add", places, term)
        return places

    def _check(self, statement: Check) -> None:
        """A branch to where the flag is set, hardly ever taken."""
        assert self.flag is not None
        holds = self._holds_in_all_lanes(statement.condition)
        failed, passed = self.b.fresh_label("failed"), self.b.fresh_label("passed")
        self.b.branch(holds, passed, failed)
        self.b.label(failed)
        self.b.emit(f"store atomic i64 1, {self.flag} monotonic, align 8")
        self.b.jump(passed)
        self.b.label(passed)

    def _holds_in_all_lanes(self, condition: str) -> Operand:
        if condition not in self.varying:
            return self.scalar(condition)
        assert self.front is not None
        joined: Operand | None = None
        for copy, mask in enumerate(self.front.masks):
            lanes = self.lanes_of(condition, copy)
            if mask is not None:
                lanes = self.b.select(mask.operand, lanes, splat(self.target.lanes, Operand("i1", "true")))
            joined = lanes if joined is None else self.b.binary("and", joined, lanes)
        assert joined is not None
        return self.b.intrinsic("vector.reduce.and", [joined], "i1")

    def _store(self, statement: Store) -> None:
        dtype = self.param_dtypes[statement.param]
        if self.front is None or statement.index.coefficient(self.front.axis) == 0:
            self._store_scalar(statement, dtype)
            return
        step = self._step(statement.index)
        for copy, pointer in self._lane_pointers(statement.param, dtype, statement.index):
            value = self.lanes_of(statement.arg, copy)
            self._prefetch(pointer, dtype, statement.index, write=True)
            store_lanes(self.b, self.target, dtype, pointer, step, value, self.front.masks[copy])

    def _prefetch(self, pointer: Operand, dtype: torch.dtype, index: Index, write: bool) -> None:
        """Asks for what a later iteration will take, where lanes are side by side and each iteration is far from the
        last one: prefetchers follow no stride beyond a page, and few of those within it."""
        assert self.front is not None
        axis = next(reversed(self.positions))
        stride = index.coefficient(axis)
        if axis == self.front.axis or index.coefficient(self.front.axis) != 1 or isinstance(stride, SizeParam):
            return
        if abs(stride) * dtype.itemsize >= _FAR_BYTES:
            ahead = self.b.offset(pointer, MEMORY_TYPES[dtype], i64(stride * _ITERATIONS_AHEAD))
            prefetch(self.b, ahead, write)

    def _step(self, index: Index) -> int | Operand:
        """Elements from one lane to the next."""
        assert self.front is not None
        coefficient = index.coefficient(self.front.axis)
        return self.size(coefficient) if isinstance(coefficient, SizeParam) else coefficient

    def _store_scalar(self, statement: Store, dtype: torch.dtype) -> None:
        """One element; of lanes that all store to it the last one, as a loop would leave it."""
        value = self.values[statement.arg][-1]
        if value.type.startswith("<"):
            assert self.front is not None
            mask = self.front.masks[-1]
            if mask is not None and mask.count is not None:
                last = self.b.binary("sub", mask.count, Operand("i32", "1"))
            else:
                count = self.target.lanes if mask is None or mask.active is None else mask.active
                last = Operand("i32", str(count - 1))
            value = self.b.assign(value.type.split(" x ")[1][:-1], f"extractelement {value}, {last}")
        store_scalar(self.b, dtype, self.pointer(statement.param, dtype, statement.index), value)

    def _index_value(self, statement: IndexValue) -> None:
        if statement.result not in self.varying:
            self.values[statement.result] = (self.affine(statement.index),)
            return
        assert self.front is not None
        self.values[statement.result] = tuple(
            self._lane_indices(statement.index, copy, "i64") for copy in range(len(self.front.masks))
        )

    def _lane_indices(self, index: Index, copy: int, type_: str) -> Operand:
        """The index in each lane of a copy."""
        assert self.front is not None
        coefficient = index.coefficient(self.front.axis)
        distance = multiply(self.b, self.size(coefficient), copy * self.target.lanes)
        first = add(self.b, self.affine(index), distance)
        narrow = first
        if type_ == "i32":
            known = static(first)
            narrow = Operand("i32", str(known)) if known is not None else self.b.convert("trunc", first, "i32")
        lanes = self.widen(narrow)
        if coefficient == 0:
            return lanes
        if isinstance(coefficient, SizeParam):
            numbers = lane_numbers(self.target.lanes, 1, type_)
            return self.b.binary("add", lanes, self.b.binary("mul", numbers, self.widen(self.size(coefficient))))
        return self.b.binary("add", lanes, lane_numbers(self.target.lanes, coefficient, type_))

    def _in_range(self, statement: InRange) -> None:
        """low <= index < high as one unsigned comparison of index - low."""
        if any(isinstance(size, SizeParam) for size in (statement.low, statement.high, statement.index.offset)):
            self._in_range_of_sizes(statement)
            return
        assert not isinstance(statement.low, SizeParam) and not isinstance(statement.high, SizeParam)
        assert not isinstance(statement.index.offset, SizeParam)
        shifted = Index(statement.index.offset - statement.low, statement.index.terms)
        width = statement.high - statement.low
        if width <= 0:
            self.values[statement.result] = (Operand("i1", "false"),)
            return
        if statement.result not in self.varying:
            index = self.affine(shifted)
            self.values[statement.result] = (self.b.compare("icmp ult", index, i64(width)),)
            return
        assert self.front is not None
        type_ = "i32" if fits_in_i32(shifted, self.extents) and width < 2**31 else "i64"
        self.values[statement.result] = tuple(
            self.b.compare("icmp ult", lanes, number(lanes, str(width)))
            for lanes in (self._lane_indices(shifted, copy, type_) for copy in range(len(self.front.masks)))
        )

    def _in_range_of_sizes(self, statement: InRange) -> None:
        low, high = self.size(statement.low), self.size(statement.high)
        width = subtract(self.b, high, low)
        width = self.b.select(self.b.compare("icmp sgt", width, i64(0)), width, i64(0))
        if statement.result not in self.varying:
            index = subtract(self.b, self.affine(statement.index), low)
            self.values[statement.result] = (self.b.compare("icmp ult", index, width),)
            return
        assert self.front is not None
        self.values[statement.result] = tuple(
            self.b.compare("icmp ult", self.b.binary("sub", lanes, self.widen(low)), self.widen(width))
            for lanes in (self._lane_indices(statement.index, copy, "i64") for copy in range(len(self.front.masks)))
        )

    def _reduce(self, statement: Reduce) -> None:
        """Takes the value into the accumulators of every copy."""
        assert self.front is not None
        dtype = self.dtypes[statement.arg]
        accumulators = self.accumulators[statement.result]
        increasing = statement.index is not None and _increases(self._terms(statement.index), self.extents)
        for copy, accumulator in enumerate(accumulators):
            value = self.lanes_of(statement.arg, copy)
            index = None
            if statement.index is not None:
                index = self._lane_indices(statement.index, copy, accumulator[1].type.split(" x ")[1][:-1])
            mask = self.front.masks[copy] if self.front.joined else None
            accumulators[copy] = accumulate(
                self.b, statement, dtype, accumulator, value, index,
                None if mask is None else mask.operand, self.spellings, increasing,
            )  # fmt: skip


def _increases(terms: Sequence[tuple[str, Size]], extents: Mapping[str, Size]) -> bool:
    """Whether an affine form is known to increase from each iteration to the next. terms: outermost axis first."""
    reach = 0  # of the loops within
    for axis, coefficient in reversed(terms):
        extent = extents[axis]
        if isinstance(coefficient, SizeParam) or coefficient <= reach:
            return False
        if isinstance(extent, SizeParam):
            return axis == terms[0][0]
        reach += coefficient * max(extent - 1, 0)
    return True


def fits_in_i32(index: Index, extents: dict[str, Size]) -> bool:
    """Whether the index, wherever it is evaluated, is known to lie strictly inside the range of int32."""
    if isinstance(index.offset, SizeParam):
        return False
    low = high = index.offset
    for axis, coefficient in index.terms:
        extent = extents[axis]
        if isinstance(coefficient, SizeParam) or isinstance(extent, SizeParam):
            return False
        reach = coefficient * max(extent - 1, 0)
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low > -(2**31) and high < 2**31 - 1
