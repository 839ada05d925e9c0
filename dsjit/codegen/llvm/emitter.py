"""Kernels to one module of textual LLVM IR.

Each kernel becomes `define void @NAME(ptr %args, i64 %begin, i64 %end)`: `%args` points to the addresses of its
params, in order, then to that of a flag if it has checks, an int64 that becomes 1 where one fails, and then its sizes;
[%begin, %end) is the range of work items to do (`schedule.work_items` tells how many there are). Work items are
independent, so any split of the range over threads is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from dsjit.codegen.llvm.block_loops import BlockLoops
from dsjit.codegen.llvm.builder import FunctionBuilder, Operand
from dsjit.codegen.llvm.loops import add, counted_loop, i64, minimum, multiply, subtract
from dsjit.codegen.llvm.memory import Mask
from dsjit.codegen.llvm.reductions import combine, finish, result
from dsjit.codegen.llvm.schedule import Schedule
from dsjit.codegen.llvm.spellings import FAST_SPELLINGS, SPELLINGS, Spelling
from dsjit.codegen.llvm.statements import Front, StatementEmitter
from dsjit.codegen.llvm.target import Target
from dsjit.codegen.llvm.types import lane_numbers
from dsjit.codegen.nest import statement_index
from dsjit.ir.kernel import (
    Axis,
    Block,
    Check,
    IndexValue,
    InRange,
    Kernel,
    Reduce,
    SizeParam,
    Stmt,
    Store,
    has_checks,
    names_read,
)

__all__ = ["emit_module"]


def emit_module(kernels: Sequence[Kernel], target: Target, fast: bool = False) -> str:
    """The module with a function of each kernel's name. The names must differ and be plain identifiers.

    fast: leave to contract multiply-adds and to reassociate, which the meaning of a Kernel does not give.
    """
    declarations: dict[str, str] = {}
    functions: list[str] = []
    for kernel in kernels:
        builder = FunctionBuilder(declarations=declarations)
        _FunctionEmitter(kernel, target, builder, FAST_SPELLINGS if fast else SPELLINGS).emit()
        functions.append(
            f"define void @{kernel.name}(ptr %args, i64 %begin, i64 %end) nounwind {{\n"
            + "\n".join(builder.lines)
            + "\n}\n"
        )
    header = f'target triple = "{target.triple}"\n'
    return "\n".join([header, *declarations.values(), "", *functions])


class _FunctionEmitter:
    def __init__(
        self, kernel: Kernel, target: Target, builder: FunctionBuilder, spellings: Mapping[str, Spelling]
    ) -> None:
        self.kernel = kernel
        self.target = target
        self.b = builder
        self.schedule = Schedule.of(kernel, target)
        self.lanes = target.lanes
        dtypes, varying = _facts(self.schedule)
        self.s = StatementEmitter(
            builder,
            target,
            params={},
            param_dtypes={param.name: param.dtype for param in kernel.params},
            extents={axis.name: axis.size for axis in self.schedule.outer},
            varying=varying,
            dtypes=dtypes,
            spellings=spellings,
        )

    # Work items

    def emit(self) -> None:
        self.b.label("entry")
        for position, param in enumerate(self.kernel.params):
            slot = self.b.offset(Operand("ptr", "%args"), "ptr", i64(position))
            self.s.params[param.name] = self.b.assign("ptr", f"load ptr, {slot}, align 8", "p")
        given = len(self.kernel.params)
        if has_checks(self.kernel):
            slot = self.b.offset(Operand("ptr", "%args"), "ptr", i64(given))
            self.s.flag = self.b.assign("ptr", f"load ptr, {slot}, align 8", "p")
            given += 1
        for position, size in enumerate(self.kernel.sizes, start=given):
            slot = self.b.offset(Operand("ptr", "%args"), "i64", i64(position))
            self.s.sizes[size.name] = self.b.assign("i64", f"load i64, {slot}, align 8", "n")
        sizes = self.item_axes()
        begin, end = Operand("i64", "%begin"), Operand("i64", "%end")
        if len(sizes) < 2:
            counted_loop(self.b, begin, end, 1, [], lambda item, _: self.item([item], []))
        else:
            start, after = self.b.fresh_label("start"), self.b.fresh_label("done")
            self.b.branch(self.b.compare("icmp slt", begin, end), start, after)
            self.b.label(start)
            initial = self.split(begin, sizes)
            counted_loop(self.b, begin, end, 1, initial, lambda item, at: self.item(at, sizes), may_be_empty=False)
            self.b.jump(after)
            self.b.label(after)
        self.b.emit("ret void")

    def item_axes(self) -> list[Operand]:
        """Extents of the axes whose product is the range of work items, outermost first."""
        extents: list[Operand] = []
        for pieces in self.schedule.work(self.lanes).items:
            if not isinstance(pieces.size, SizeParam):
                extents.append(i64(max(pieces.count({}), 1)))
                continue
            size = self.s.size(pieces.size)
            if pieces.length > 1:
                size = self.b.binary("udiv", add(self.b, size, i64(pieces.length - 1)), i64(pieces.length))
            extents.append(size)
        return extents

    def split(self, item: Operand, sizes: Sequence[Operand]) -> list[Operand]:
        """The coordinates of a work item (there is none when a size is 0)."""
        coordinates: list[Operand] = []
        for size in reversed(sizes[1:]):
            coordinates.append(self.b.binary("urem", item, size))
            item = self.b.binary("udiv", item, size)
        return [item, *reversed(coordinates)]

    def item(self, coordinates: list[Operand], sizes: Sequence[Operand]) -> list[Operand]:
        """Does one work item; returns the coordinates of the next one, those of more than one axis."""
        with self.s.scope():
            for axis, coordinate in zip(self.schedule.outer, coordinates, strict=False):
                self.s.positions[axis.name] = coordinate
            chunk = coordinates[-1] if self.schedule.chunk is not None else None
            if self.schedule.lanes == "outer":
                self.start_lanes(self.schedule.outer[-1], coordinates[-1])
            for block in self.schedule.blocks:
                self.s.prepare(block.body)
            for block in self.schedule.blocks:
                self.block(block, chunk)
        following: list[Operand] = []
        carry: Operand | None = None
        for coordinate, size in zip(reversed(coordinates), reversed(sizes), strict=False):
            step = i64(1) if carry is None else carry
            advanced = self.b.binary("add", coordinate, step)
            wrapped = self.b.compare("icmp eq", advanced, size)
            carry = self.b.convert("zext", wrapped, "i64")
            following.append(self.b.select(wrapped, i64(0), advanced))
        return following[::-1]

    def start_lanes(self, axis: Axis, group: Operand) -> None:
        """Lanes run along the last outer axis, over one group of vectors."""
        copies = self.schedule.copies
        first = multiply(self.b, group, copies * self.lanes)
        masks: list[Mask | None] = [None] * copies
        if isinstance(axis.size, SizeParam) or axis.size % (copies * self.lanes):
            left = subtract(self.b, self.s.size(axis.size), first)
            for copy in range(copies):
                here = minimum(self.b, add(self.b, left, i64(-copy * self.lanes)), i64(self.lanes))
                count = self.s.widen(self.b.convert("trunc", here, "i32"))
                masks[copy] = Mask(self.b.compare("icmp slt", lane_numbers(self.lanes, 1, "i32"), count))
        self.s.positions[axis.name] = first
        self.s.front = Front(axis.name, tuple(masks), joined=False)

    # Blocks

    def block(self, block: Block, chunk: Operand | None) -> None:
        if not block.axes:
            for statement in block.body:
                if isinstance(statement, Reduce):
                    self.reduce_one(statement)
                else:
                    self.s.emit(statement)
            return
        reduces = [statement for statement in block.body if isinstance(statement, Reduce)]
        with self.s.scope():
            accumulators = BlockLoops(self.s, self.schedule, block, reduces, chunk).emit()
            results = {reduce.result: self.reduced(reduce, accumulators[reduce.result]) for reduce in reduces}
        self.s.values.update(results)

    def reduce_one(self, reduce: Reduce) -> None:
        """A reduction over no axes: of one element, at the index's offset."""
        if reduce.index is None:
            self.s.values[reduce.result] = self.s.values[reduce.arg]
        else:
            self.s.values[reduce.result] = (self.s.size(reduce.index.offset),)

    def reduced(self, reduce: Reduce, accumulators: list[list[Operand]]) -> tuple[Operand, ...]:
        """The results from the accumulators of all copies."""
        dtype = self.s.dtypes[reduce.arg]
        if self.schedule.lanes == "outer":
            return tuple(result(self.b, reduce, accumulator) for accumulator in accumulators)
        joined = accumulators
        while len(joined) > 1:
            pairs = [combine(self.b, reduce, dtype, x, y) for x, y in zip(joined[::2], joined[1::2], strict=False)]
            joined = pairs + joined[len(pairs) * 2 :]
        return (finish(self.b, reduce, dtype, joined[0]),)


def _facts(schedule: Schedule) -> tuple[dict[str, torch.dtype], frozenset[str]]:
    """The dtype of every result, and which results differ from lane to lane."""
    dtypes: dict[str, torch.dtype] = {}
    varying: set[str] = set()
    for block in schedule.blocks:
        lane_axis = _lane_axis(schedule, block)
        for statement in block.body:
            if isinstance(statement, Store | Check):
                continue
            name = statement.result
            dtypes[name] = _result_dtype(statement)
            if isinstance(statement, Reduce) and block.axes:
                varies = schedule.lanes == "outer"
            else:
                index = statement_index(statement)
                varies = index is not None and lane_axis is not None and index.coefficient(lane_axis) != 0
                varies = varies or any(arg in varying for arg in names_read(statement))
            if varies:
                varying.add(name)
    return dtypes, frozenset(varying)


def _lane_axis(schedule: Schedule, block: Block) -> str | None:
    if schedule.lanes == "outer":
        return schedule.outer[-1].name
    return block.axes[-1].name if schedule.lanes == "inner" and block.axes else None


def _result_dtype(statement: Stmt) -> torch.dtype:
    match statement:
        case IndexValue():
            return torch.int64
        case InRange():
            return torch.bool
        case Store() | Check():
            raise TypeError(f"{statement} has no result")
        case _:
            return statement.dtype
