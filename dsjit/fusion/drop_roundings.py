"""What `numerics="fast"` does to a Kernel: between its ops, bfloat16 and float16 values stay in float32.

Why: eager rounds the result of every op on bfloat16 or float16 tensors. Within a Kernel a result goes on to the next
op in a register, where rounding it takes up to eight instructions and loses precision. What a Kernel stores is rounded
once, and values that wait in memory from one block to a later one are rounded as before.

Before:
    kernel scaled(x: bf16*, y: bf16* write):  # lanes along i0
        for i0 in range(64):
            a = x[i0]
            b = f32(a)
            c = mul(b, b)
            d = bf16(c)
            e = f32(d)
            f = exp(e)
            g = bf16(f)
            y[i0] = g
After:
    kernel scaled(x: bf16*, y: bf16* write):  # lanes along i0
        for i0 in range(64):
            a = x[i0]
            b = f32(a)
            c = mul(b, b)
            f = exp(c)
            g = bf16(f)
            y[i0] = g
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch

from dsjit.ir.kernel import Apply, Block, Cast, Constant, Kernel, Load, Reduce, Stmt, Store, names_read

__all__ = ["drop_roundings"]

NARROW: Final = frozenset({torch.bfloat16, torch.float16})


def drop_roundings(kernel: Kernel) -> Kernel:
    """`kernel` without the conversions to bfloat16 or float16 and straight back to float32; itself if it has none.

    Linear time. What is defined where a value was rounded is in scope wherever the rounded one was.
    """
    dtypes: dict[str, torch.dtype] = {}
    unrounded: dict[str, str] = {}
    wide: dict[str, str] = {}
    for statement in (statement for block in kernel.blocks for statement in block.body):
        if isinstance(statement, Load | Constant | Apply | Cast | Reduce):
            dtypes[statement.result] = statement.dtype
        if not isinstance(statement, Cast):
            continue
        if statement.dtype in NARROW and dtypes.get(statement.arg) is torch.float32:
            unrounded[statement.result] = wide.get(statement.arg, statement.arg)
        elif statement.dtype is torch.float32 and statement.arg in unrounded:
            wide[statement.result] = unrounded[statement.arg]
    if not wide:
        return kernel
    blocks = [Block(block.axes, tuple(_renamed(s, wide) for s in block.body)) for block in kernel.blocks]
    return replace(kernel, blocks=_without_unused_casts(blocks))


def _renamed(statement: Stmt, names: Mapping[str, str]) -> Stmt:
    match statement:
        case Apply():
            return replace(statement, args=tuple(names.get(arg, arg) for arg in statement.args))
        case Cast() | Reduce() | Store():
            return replace(statement, arg=names.get(statement.arg, statement.arg))
        case _:  # what else reads a value reads a bool
            return statement


def _without_unused_casts(blocks: list[Block]) -> tuple[Block, ...]:
    used: set[str] = set()
    kept: list[Block] = []
    for block in reversed(blocks):
        body: list[Stmt] = []
        for statement in reversed(block.body):
            if isinstance(statement, Cast) and statement.result not in used:
                continue
            used.update(names_read(statement))
            body.append(statement)
        kept.append(Block(block.axes, tuple(reversed(body))))
    return tuple(reversed(kept))
