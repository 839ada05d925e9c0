"""The statements that make an operand of a matrix product, and the narrow dtype in which matrix units take it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import torch

from dsjit.codegen.nest import statement_index
from dsjit.ir.dtypes import FLOAT8
from dsjit.ir.kernel import Apply, Cast, Constant, Load, Stmt, Store, names_read

_NARROW: Final = frozenset({torch.bfloat16, torch.float16}) | FLOAT8

__all__ = ["axes_of", "dtype_of", "narrow_operand", "operand_statements"]


def operand_statements(name: str, made: Mapping[str, Stmt]) -> dict[str, Stmt]:
    """The statements among `made` that a result depends on, itself included, in order."""
    wanted, stack = {name}, [name]
    while stack:
        statement = made.get(stack.pop())
        for arg in () if statement is None else names_read(statement):
            if arg not in wanted:
                wanted.add(arg)
                stack.append(arg)
    return {result: statement for result, statement in made.items() if result in wanted}


def axes_of(statements: Iterable[Stmt]) -> set[str]:
    """The axes that occur in their indices."""
    indices = [statement_index(statement) for statement in statements]
    return {axis for index in indices if index is not None for axis, _ in index.terms}


def narrow_operand(name: str, made: Mapping[str, Stmt]) -> str:
    """The operand before it was widened to float32, which matrix units do by themselves."""
    statement = made.get(name)
    if isinstance(statement, Cast) and statement.arg in made:
        narrow = made[statement.arg]
        if not isinstance(narrow, Store) and dtype_of(narrow) in _NARROW:
            return statement.arg
    return name


def dtype_of(statement: Stmt) -> torch.dtype:
    """Of the result of a load, a conversion, a constant or an op."""
    assert isinstance(statement, Load | Cast | Apply | Constant)
    return statement.dtype
