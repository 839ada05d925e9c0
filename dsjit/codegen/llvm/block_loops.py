"""The loops of one block of a Kernel. What a loop carries from iteration to iteration is the accumulators of the
block's reductions, flattened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from dsjit.codegen.llvm.builder import Operand
from dsjit.codegen.llvm.loops import add, counted_loop, i64, minimum, multiply, subtract
from dsjit.codegen.llvm.memory import Mask
from dsjit.codegen.llvm.reductions import combine, identity
from dsjit.codegen.llvm.schedule import Schedule, body_weight, sums_floats
from dsjit.codegen.llvm.statements import Accumulators, Front, StatementEmitter, fits_in_i32
from dsjit.codegen.llvm.types import lane_numbers
from dsjit.codegen.nest import statement_index
from dsjit.ir.kernel import Apply, Block, Check, Reduce, Size, SizeParam, Stmt, Store, names_read, typical

__all__ = ["BlockLoops"]

State: TypeAlias = list[Operand]

_MANY_TRIPS: Final = 1 << 16
"""Stands for the iterations of a loop over a size that is a parameter: enough levels of sums for any size."""

_RUN: Final = 16
"""Additions into a float accumulator before it is added to the one of the next level. So the error of a sum of n
numbers grows with the number of levels, the logarithm of n to this base, and not with n (pairwise summation, Higham,
"The accuracy of floating point summation", 1993). ATen's sums use the same length at the sizes of interest."""


class BlockLoops:
    """Prints the loops over the axes of `block`, with its statements at the levels where they belong."""

    def __init__(
        self,
        statements: StatementEmitter,
        schedule: Schedule,
        block: Block,
        reduces: Sequence[Reduce],
        chunk: Operand | None,
    ) -> None:
        """chunk: the number of the chunk of the last axis to cover, when the schedule has chunks."""
        self.s = statements
        self.b = statements.b
        self.lanes = statements.target.lanes
        self.schedule = schedule
        self.axes = block.axes
        self.levels = _levels(block)
        self.reduces = reduces
        self.chunk = chunk
        self.flushes = any(sums_floats(reduce) for reduce in reduces)
        self.inner = schedule.lanes == "inner"
        self.copies = self._copies() if self.inner else schedule.copies
        statements.extents = {**statements.extents, **{axis.name: axis.size for axis in block.axes}}
        self.index_types = {
            reduce.result: "i32" if reduce.index is None or fits_in_i32(reduce.index, statements.extents) else "i64"
            for reduce in reduces
        }

    def _copies(self) -> int:
        """Vectors of one iteration: enough for independent chains of additions, fewer for bodies with much to do."""
        weight = body_weight(self.levels[-1])
        if self.reduces:
            wanted = 4 if weight <= 8 else 2 if weight <= 24 else 1
        else:
            wanted = 2 if weight <= 12 else 1
        vectors = typical(self.axes[-1].size) // self.lanes
        while wanted > max(vectors, 1):
            wanted //= 2
        return wanted

    def emit(self) -> Accumulators:
        """Prints everything; returns the accumulators of each reduction, one a copy."""
        self._enter(0)
        state = self._identities()
        if all(isinstance(axis.size, SizeParam) or axis.size > 0 for axis in self.axes):
            state = self._loop(0, state)
        return self._unpack(state, self.copies)

    # State

    def _identities(self) -> State:
        flat: State = []
        for reduce in self.reduces:
            fresh = identity(reduce, self.s.dtypes[reduce.arg], self.lanes, self.index_types[reduce.result])
            flat.extend(fresh * self.copies)
        return flat

    def _unpack(self, state: Sequence[Operand], copies: int) -> Accumulators:
        accumulators: Accumulators = {}
        position = 0
        for reduce in self.reduces:
            width = 1 if reduce.index is None else 2
            accumulators[reduce.result] = [
                list(state[position + copy * width : position + (copy + 1) * width]) for copy in range(copies)
            ]
            position += width * copies
        return accumulators

    def _pack(self, accumulators: Accumulators) -> State:
        return [part for reduce in self.reduces for copy in accumulators[reduce.result] for part in copy]

    def _join(self, x: Sequence[Operand], y: Sequence[Operand]) -> State:
        first, second = self._unpack(x, self.copies), self._unpack(y, self.copies)
        for reduce in self.reduces:
            dtype = self.s.dtypes[reduce.arg]
            first[reduce.result] = [
                combine(self.b, reduce, dtype, one, other)
                for one, other in zip(first[reduce.result], second[reduce.result], strict=True)
            ]
        return self._pack(first)

    # Loops

    def _enter(self, level: int) -> None:
        """Prints what depends on no more than the first `level` axes, for the deeper loops to use."""
        for statement in self.levels[level]:
            self.s.emit(statement)
        for deeper in self.levels[level + 1 :]:
            self.s.prepare(deeper)
        if level == len(self.axes) - 1:
            self._widen_operands(self.levels[-1])

    def _widen_operands(self, statements: Sequence[Stmt]) -> None:
        for statement in statements:
            names: tuple[str, ...] = ()
            if isinstance(statement, Apply):
                names = statement.args if statement.result in self.s.varying else ()
            elif isinstance(statement, Reduce | Store):
                names = (statement.arg,)
            for name in names:
                if name in self.s.values:
                    self.s.widen(self.s.values[name][0])

    def _loop(self, level: int, state: State) -> State:
        """Loops over the axes from `level` on."""
        axis = self.axes[level]
        if level == len(self.axes) - 1:
            if self.inner:
                return self._lanes_loop(state)
            return self._accumulate_all(axis.size, state, self._body(None, self.copies))
        below = self._additions_below(level)
        flush = self.flushes and below >= _RUN // 2

        def body(position: Operand, outer: State) -> State:
            with self.s.scope():
                self.s.positions[axis.name] = position
                self._enter(level + 1)
                if flush:
                    return self._join(outer, self._loop(level + 1, self._identities()))
                return self._loop(level + 1, outer)

        return self._accumulate_all(axis.size, state, body, 1 if flush else below)

    def _additions_below(self, level: int) -> int:
        """Values that an accumulator takes in, in the loops inside of `level`."""
        count = 1
        for axis in self.axes[level + 1 :]:
            count *= typical(axis.size)
        return max(count // (self.copies * self.lanes) if self.inner else count, 1)

    def _accumulate_all(
        self, size: Size, state: State, body: Callable[[Operand, State], State], weight: int = 1
    ) -> State:
        """The loop over an axis; its iterations are as in `_accumulate`."""
        if isinstance(size, SizeParam):
            return self._accumulate(i64(0), self.s.size(size), 1, _MANY_TRIPS, state, body, weight, may_be_empty=True)
        return self._accumulate(i64(0), i64(size), 1, size, state, body, weight)

    def _accumulate(
        self,
        start: Operand,
        stop: Operand,
        step: int,
        trips: int,
        state: State,
        body: Callable[[Operand, State], State],
        weight: int = 1,
        may_be_empty: bool = False,
    ) -> State:
        """A loop of about `trips` iterations at most, each with `weight` additions into an accumulator.

        Float sums of many: a nest of loops, each of which adds up about `_RUN` sums of the one inside of it.
        """
        run = max(_RUN // weight, 1)
        if not self.flushes or trips <= 2 * run:
            return counted_loop(self.b, start, stop, step, state, body, may_be_empty)
        inner = run
        while trips > 2 * _RUN * inner:
            inner *= _RUN

        def flushed(position: Operand, outer: State) -> State:
            end = minimum(self.b, add(self.b, position, i64(inner * step)), stop)
            return self._join(outer, self._accumulate(position, end, step, inner, self._identities(), body, weight))

        return counted_loop(self.b, start, stop, inner * step, state, flushed, may_be_empty)

    def _body(self, mask: Mask | None, copies: int) -> Callable[[Operand, State], State]:
        """The innermost iteration; with lanes along its axis, of `copies` vectors, each with this mask."""
        axis = self.axes[-1]

        def body(position: Operand, state: State) -> State:
            with self.s.scope():
                self.s.positions[axis.name] = position
                if self.inner:
                    self.s.front = Front(axis.name, (mask,) * copies, joined=True)
                self.s.accumulators = self._unpack(state, copies)
                for statement in self.levels[-1]:
                    self.s.emit(statement)
                return self._pack(self.s.accumulators)

        return body

    def _lanes_loop(self, state: State) -> State:
        """The last axis, a few vectors at a time; then single vectors; then the lanes that are left, masked."""
        size = self.axes[-1].size
        step = self.copies * self.lanes
        if isinstance(size, SizeParam):
            return self._lanes_loop_of(self.s.size(size), step, state)
        covered = size // step * step
        if self.chunk is not None:
            self._chunk_loop(self.chunk, size, covered, step)
            return state
        if covered:
            state = self._accumulate(i64(0), i64(covered), step, covered // step, state, self._body(None, self.copies))
        if covered < size:
            accumulators = self._unpack(state, self.copies)
            first = {name: copies[:1] for name, copies in accumulators.items()}
            rest = self._unpack(self._remainder(size, covered, self._pack(first)), 1)
            state = self._pack({name: rest[name] + copies[1:] for name, copies in accumulators.items()})
        return state

    def _remainder(self, size: int, start: int, state: State) -> State:
        whole = size // self.lanes * self.lanes
        state = counted_loop(self.b, i64(start), i64(whole), self.lanes, state, self._body(None, 1))
        if whole < size:
            state = self._body(Mask.first(self.lanes, size - whole), 1)(i64(whole), state)
        return state

    def _lanes_loop_of(self, size: Operand, step: int, state: State) -> State:
        """The same for a size that is known when the kernel runs. Both steps are powers of two."""
        covered = self.b.binary("and", size, i64(-step))
        if self.chunk is not None:
            self._chunk_loop_of(self.chunk, size, covered, step)
            return state
        body = self._body(None, self.copies)
        state = self._accumulate(i64(0), covered, step, _MANY_TRIPS, state, body, may_be_empty=True)
        accumulators = self._unpack(state, self.copies)
        first = {name: copies[:1] for name, copies in accumulators.items()}
        rest = self._unpack(self._remainder_of(size, covered, self._pack(first)), 1)
        return self._pack({name: rest[name] + copies[1:] for name, copies in accumulators.items()})

    def _remainder_of(self, size: Operand, start: Operand, state: State) -> State:
        whole = self.b.binary("and", size, i64(-self.lanes))
        if self.copies > 1:
            state = counted_loop(self.b, start, whole, self.lanes, state, self._body(None, 1))

        def tail(position: Operand, carried: State) -> State:
            count = self.b.convert("trunc", subtract(self.b, size, position), "i32")
            with self.s.scope():
                active = self.b.compare("icmp slt", lane_numbers(self.lanes, 1, "i32"), self.s.widen(count))
            return self._body(Mask(active, count=count), 1)(position, carried)

        return counted_loop(self.b, whole, size, self.lanes, state, tail)

    def _chunk_loop_of(self, chunk: Operand, size: Operand, covered: Operand, step: int) -> None:
        """One chunk of a map, the size of which is known when the kernel runs; a chunk is a power of two."""
        extent = self.schedule.chunk
        assert extent is not None
        start = multiply(self.b, chunk, extent)
        end = add(self.b, start, i64(extent))
        counted_loop(self.b, start, minimum(self.b, end, covered), step, [], self._body(None, self.copies))
        tail, after = self.b.fresh_label("tail"), self.b.fresh_label("after")
        self.b.branch(self.b.compare("icmp sge", end, size), tail, after)
        self.b.label(tail)
        with self.s.scope():
            self._remainder_of(size, covered, [])
        self.b.jump(after)
        self.b.label(after)

    def _chunk_loop(self, chunk: Operand, size: int, covered: int, step: int) -> None:
        """One chunk of a map; the last chunk also does what is left when the vectors are through."""
        extent = self.schedule.chunk
        assert extent is not None
        last = (size - 1) // extent * extent
        start = multiply(self.b, chunk, extent) if last else i64(0)
        stop = minimum(self.b, add(self.b, start, i64(extent)), i64(covered))
        counted_loop(self.b, start, stop, step, [], self._body(None, self.copies), may_be_empty=covered <= last)
        if covered == size:
            return
        if not last:
            self._remainder(size, covered, [])
            return
        tail, after = self.b.fresh_label("tail"), self.b.fresh_label("after")
        self.b.branch(self.b.compare("icmp eq", start, i64(last)), tail, after)
        self.b.label(tail)
        with self.s.scope():
            self._remainder(size, covered, [])
        self.b.jump(after)
        self.b.label(after)


def _levels(block: Block) -> list[list[Stmt]]:
    """The statements by how many of the block's axes they must be inside of; stores and reductions inside of all."""
    depth = {axis.name: position + 1 for position, axis in enumerate(block.axes)}
    level_of: dict[str, int] = {}
    levels: list[list[Stmt]] = [[] for _ in range(len(block.axes) + 1)]
    for statement in block.body:
        if isinstance(statement, Store | Reduce):
            levels[-1].append(statement)
            continue
        level = 0
        index = statement_index(statement)
        if index is not None:
            level = max((depth.get(axis, 0) for axis, _ in index.terms), default=0)
        for name in names_read(statement):
            level = max(level, level_of.get(name, 0))
        if not isinstance(statement, Check):
            level_of[statement.result] = level
        levels[level].append(statement)
    return levels
