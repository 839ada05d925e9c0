"""The checker of the Kernel IR: every rule of `ir.kernel`; a violation is reported with the statement at fault."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dsjit.errors import VerificationError
from dsjit.ir.dtypes import FLOAT8, KERNEL_DTYPES, is_integral
from dsjit.ir.kernel import (
    Apply,
    Axis,
    Block,
    Cast,
    Check,
    Constant,
    Index,
    IndexValue,
    InRange,
    Kernel,
    Load,
    Param,
    Reduce,
    SizeParam,
    Stmt,
    Store,
)
from dsjit.ir.scalar import SCALAR_OPS, accepts

__all__ = ["verify_kernel"]

_STORAGE_ONLY = frozenset({torch.float16, torch.bfloat16})
_SUM_DTYPES = frozenset({torch.float32, torch.float64, torch.int64})


def verify_kernel(kernel: Kernel) -> None:
    """Raises VerificationError, naming the kernel and the statement, when `kernel` breaks a rule of `ir.kernel`."""
    _Checker(kernel).check()


class _Checker:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.params: dict[str, Param] = {}
        self.defined: set[str] = set()
        self.outer = {axis.name for axis in kernel.outer}
        self.kept: dict[str, tuple[frozenset[str], torch.dtype]] = {}

    def fail(self, message: str) -> VerificationError:
        return VerificationError(f"kernel {self.kernel.name}: {message}")

    def check(self) -> None:
        for param in self.kernel.params:
            if param.name in self.params:
                raise self.fail(f"param {param.name} is declared twice")
            if param.dtype not in KERNEL_DTYPES and param.dtype not in FLOAT8:
                raise self.fail(f"param {param.name} has dtype {param.dtype}, which kernels cannot hold")
            if param.access not in ("read", "write", "readwrite"):
                raise self.fail(f"param {param.name} has access {param.access!r}")
            self.params[param.name] = param
        self.check_axes(self.kernel.outer, set())
        for block in self.kernel.blocks:
            self.check_axes(block.axes, self.outer)
        self.check_vector_axis()
        visible: dict[str, torch.dtype] = {}
        for block in self.kernel.blocks:
            self.check_block(block, visible)

    def check_axes(self, axes: Iterable[Axis], taken: set[str]) -> None:
        names = set(taken)
        for axis in axes:
            if axis.name in names:
                raise self.fail(f"axis {axis.name} is declared twice")
            if not isinstance(axis.size, SizeParam) and axis.size < 0:
                raise self.fail(f"axis {axis.name} has size {axis.size}")
            names.add(axis.name)

    def check_vector_axis(self) -> None:
        name = self.kernel.vector_axis
        looping = [block for block in self.kernel.blocks if block.axes]
        if name is None:
            if self.kernel.outer or looping:
                raise self.fail("vector_axis is None, though there are axes")
        elif name in self.outer:
            if self.kernel.outer[-1].name != name:
                raise self.fail(f"vector_axis {name} is an outer axis, but not the last one")
        elif not looping or any(block.axes[-1].name != name for block in looping):
            raise self.fail(f"vector_axis {name} is not the last axis of every block with axes")

    def check_block(self, block: Block, visible: dict[str, torch.dtype]) -> None:
        own = {axis.name for axis in block.axes}
        kept = {name: dtype for name, (axes, dtype) in self.kept.items() if axes <= own}
        scope = {**visible, **kept}
        axes = self.outer | own
        reduced: dict[str, torch.dtype] = {}
        for statement in block.body:
            dtype = self.check_statement(statement, scope, axes, block)
            if dtype is None or isinstance(statement, Store | Check):
                continue
            name = statement.result
            if name in self.defined:
                raise self.fail(f"{name} is defined twice: {statement}")
            self.defined.add(name)
            if isinstance(statement, Reduce) and statement.over is not None:
                self.kept[name] = frozenset(own.difference(statement.over)), dtype
            elif isinstance(statement, Reduce):
                reduced[name] = dtype
            else:
                scope[name] = dtype
        if not block.axes:
            visible.update(scope)
        visible.update(reduced)

    def check_statement(
        self, statement: Stmt, scope: dict[str, torch.dtype], axes: set[str], block: Block
    ) -> torch.dtype | None:
        """The dtype of the statement's result; None for a store and for a check."""

        def dtype_of(name: str) -> torch.dtype:
            if name not in scope:
                raise self.fail(f"{name} is not visible here: {statement}")
            return scope[name]

        match statement:
            case Load():
                param = self.param(statement.param, "read", statement)
                self.check_index(statement.index, axes, statement)
                if param.dtype is not statement.dtype:
                    raise self.fail(f"loads {statement.dtype} from a buffer of {param.dtype}: {statement}")
                if statement.mask is not None and dtype_of(statement.mask) is not torch.bool:
                    raise self.fail(f"the mask is not bool: {statement}")
                for name, coefficient in statement.gathered:
                    if dtype_of(name) is not torch.int64:
                        raise self.fail(f"{name} is no i64, and so no place: {statement}")
                    if coefficient == 0:
                        raise self.fail(f"{name} has coefficient 0: {statement}")
                return statement.dtype
            case Constant():
                if statement.dtype not in KERNEL_DTYPES or statement.dtype in _STORAGE_ONLY:
                    raise self.fail(f"no constants of {statement.dtype}: {statement}")
                return statement.dtype
            case IndexValue():
                self.check_index(statement.index, axes, statement)
                return torch.int64
            case InRange():
                self.check_index(statement.index, axes, statement)
                return torch.bool
            case Apply():
                return self.check_apply(statement, [dtype_of(arg) for arg in statement.args])
            case Cast():
                dtype_of(statement.arg)
                if statement.dtype not in KERNEL_DTYPES and statement.dtype not in FLOAT8:
                    raise self.fail(f"casts to {statement.dtype}, which kernels cannot hold: {statement}")
                return statement.dtype
            case Reduce():
                return self.check_reduce(statement, dtype_of(statement.arg), block)
            case Store():
                param = self.param(statement.param, "write", statement)
                self.check_index(statement.index, axes, statement)
                if dtype_of(statement.arg) is not param.dtype:
                    raise self.fail(f"stores {dtype_of(statement.arg)} to a buffer of {param.dtype}: {statement}")
                return None
            case Check():
                if dtype_of(statement.condition) is not torch.bool:
                    raise self.fail(f"the condition is not bool: {statement}")
                return None

    def param(self, name: str, access: str, statement: Stmt) -> Param:
        param = self.params.get(name)
        if param is None:
            raise self.fail(f"no param {name}: {statement}")
        if param.access not in (access, "readwrite"):
            raise self.fail(f"param {name} is for {param.access} only: {statement}")
        return param

    def check_index(self, index: Index, axes: set[str], statement: Stmt) -> None:
        seen: set[str] = set()
        for name, coefficient in index.terms:
            if name not in axes:
                raise self.fail(f"axis {name} is not in scope: {statement}")
            if coefficient == 0:
                raise self.fail(f"axis {name} has coefficient 0: {statement}")
            if name in seen:
                raise self.fail(f"axis {name} appears twice in an index: {statement}")
            seen.add(name)

    def check_apply(self, statement: Apply, dtypes: list[torch.dtype]) -> torch.dtype:
        row = SCALAR_OPS.get(statement.op)
        if row is None:
            raise self.fail(f"no scalar op {statement.op}: {statement}")
        if len(dtypes) != row.arity:
            raise self.fail(f"{statement.op} takes {row.arity} operands: {statement}")
        operands = dtypes
        if statement.op == "select":
            if dtypes[0] is not torch.bool:
                raise self.fail(f"the condition is not bool: {statement}")
            operands = dtypes[1:]
        if any(dtype is not operands[0] for dtype in operands):
            raise self.fail(f"operands of several dtypes {operands}: {statement}")
        if not accepts(row.domain, operands[0]):
            raise self.fail(f"{statement.op} does not take {operands[0]}: {statement}")
        expected = torch.bool if row.result == "bool" else operands[0]
        if statement.dtype is not expected:
            raise self.fail(f"the result is {expected}, not {statement.dtype}: {statement}")
        return expected

    def check_reduce(self, statement: Reduce, arg: torch.dtype, block: Block) -> torch.dtype:
        kind = statement.kind
        if statement.over is not None:
            if kind != "sum":
                raise self.fail(f"{kind} combines all axes of the block: {statement}")
            if not {axis.name for axis in block.axes} > set(statement.over):
                raise self.fail(f"combines axes that are not some of the block's: {statement}")
        picks_index = kind in ("argmax", "argmin")
        if picks_index != (statement.index is not None):
            raise self.fail(f"{kind} {'needs' if picks_index else 'takes no'} index: {statement}")
        if statement.index is not None:
            self.check_index(statement.index, {axis.name for axis in block.axes}, statement)
        if kind in ("sum", "prod"):
            legal = arg in _SUM_DTYPES
        elif kind in ("any", "all"):
            legal = arg is torch.bool
        elif kind in ("max", "min", "argmax", "argmin"):
            legal = arg in (torch.float32, torch.float64) or is_integral(arg)
        else:
            raise self.fail(f"no reduction {kind}: {statement}")
        if not legal:
            raise self.fail(f"{kind} does not take {arg}: {statement}")
        expected = torch.int64 if picks_index else arg
        if statement.dtype is not expected:
            raise self.fail(f"the result is {expected}, not {statement.dtype}: {statement}")
        return expected
