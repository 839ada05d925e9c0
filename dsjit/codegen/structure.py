"""When two Kernels are the same code: a key that forgets names and source lines."""

from __future__ import annotations

import struct
from collections.abc import Hashable

from dsjit.ir.kernel import (
    Apply,
    Block,
    Cast,
    Check,
    Constant,
    Index,
    IndexValue,
    InRange,
    Kernel,
    Load,
    Reduce,
    SizeParam,
    Stmt,
    Store,
)

__all__ = ["kernel_structure"]


def kernel_structure(kernel: Kernel) -> Hashable:
    """Equal for Kernels that differ only in their Sources and in the names of kernel, params, axes and results."""
    return _Numbering(kernel).structure()


class _Numbering:
    """Gives each name a number, in order of appearance."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.params = {param.name: number for number, param in enumerate(kernel.params)}
        self.axes = {axis.name: number for number, axis in enumerate(kernel.outer)}
        self.values: dict[str, int] = {}

    def structure(self) -> Hashable:
        kernel = self.kernel
        blocks = tuple(self.block(block) for block in kernel.blocks)
        along_outer = any(axis.name == kernel.vector_axis for axis in kernel.outer)
        params = tuple((param.dtype, param.access) for param in kernel.params)
        sizes = tuple(axis.size for axis in kernel.outer)
        return params, sizes, blocks, along_outer, kernel.sizes

    def block(self, block: Block) -> Hashable:
        outer = len(self.kernel.outer)
        for number, axis in enumerate(block.axes):
            self.axes[axis.name] = outer + number
        return tuple(axis.size for axis in block.axes), tuple(self.statement(statement) for statement in block.body)

    def statement(self, statement: Stmt) -> Hashable:
        values = self.values
        match statement:
            case Apply():
                key: tuple[Hashable, ...] = (statement.op, *(values[arg] for arg in statement.args))
            case Load():
                mask = None if statement.mask is None else (values[statement.mask], _exact(statement.other))
                gathered = tuple([(values[name], coefficient) for name, coefficient in statement.gathered])
                key = ("load", self.params[statement.param], self.index(statement.index), mask, gathered)
            case Store():
                return "store", self.params[statement.param], self.index(statement.index), values[statement.arg]
            case Check():
                return "check", values[statement.condition]
            case Constant():
                key = ("constant", _exact(statement.value), statement.dtype)
            case Cast():
                key = ("cast", values[statement.arg], statement.dtype)
            case IndexValue():
                key = ("index", self.index(statement.index))
            case InRange():
                key = ("in_range", self.index(statement.index), statement.low, statement.high)
            case Reduce():
                at = None if statement.index is None else self.index(statement.index)
                over = None if statement.over is None else tuple(self.axes[axis] for axis in statement.over)
                key = ("reduce", statement.kind, values[statement.arg], at, statement.matrix, over)
        values[statement.result] = len(values)
        return key

    def index(self, index: Index) -> Hashable:
        terms = [(self.axes[axis], coefficient) for axis, coefficient in index.terms]
        return index.offset, tuple(sorted(terms, key=lambda term: term[0]))


def _exact(value: float | int | bool | SizeParam) -> Hashable:
    """Tells apart 0.0 and -0.0, and 1 and 1.0 and True; a NaN equals itself."""
    return struct.pack("<d", value) if isinstance(value, float) else (type(value), value)
