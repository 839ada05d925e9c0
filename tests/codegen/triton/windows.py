"""A window of a Kernel: the same statements over fewer points, so that the definition, which is slow, can run them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

import torch

from dsjit.codegen.nest import index_bounds
from dsjit.codegen.operands import operand_statements
from dsjit.codegen.triton.emitter import emit_kernel
from dsjit.ir.dtypes import is_floating
from dsjit.ir.kernel import Axis, Check, Kernel, Load, Param, Store, known

LONGEST: Final = 37
"""Points along one axis of a window: no power of 2, and more than the 32 sides of a two-dimensional tile."""

POINTS: Final = 600
"""Points of a window, about."""


def form(kernel: Kernel) -> str:
    """What Kernels have in common that differ in numbers and names alone."""
    text = re.sub(r" *#.*", "", emit_kernel(kernel, 132).text)
    dtypes = [(param.dtype, param.access) for param in kernel.params]
    return f"{re.sub(r'[a-z_]*[0-9]+', '0', text)} {dtypes}"


def window(kernel: Kernel) -> Kernel:
    """The Kernel with every axis cut short. Indices stay what they were, so each stays within its buffer."""
    left = POINTS
    sizes: dict[str, int] = {}
    blocks = [axis for block in kernel.blocks for axis in block.axes]
    for axis in (*reversed(blocks), *reversed(kernel.outer)):
        if axis.name not in sizes:
            sizes[axis.name] = min(known(axis.size), LONGEST, max(left, 2))
            left //= sizes[axis.name]

    def cut(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple([Axis(axis.name, sizes[axis.name]) for axis in axes])

    blocks_cut = tuple([replace(block, axes=cut(block.axes)) for block in kernel.blocks])
    params = tuple(sorted(kernel.params, key=lambda param: param.access != "read"))
    return replace(kernel, params=params, outer=cut(kernel.outer), blocks=blocks_cut)


def buffers(kernel: Kernel) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Random content for what the Kernel reads, and for what it writes. What tells places is 0 or 1, lest it be out of
    range."""
    generator = torch.Generator().manual_seed(0)
    bounds = zip(kernel.params, index_bounds(kernel), strict=True)
    lengths = {param.name: high + 1 for param, (_, high) in bounds}
    statements = [statement for block in kernel.blocks for statement in block.body]
    made = {s.result: s for s in statements if not isinstance(s, Store | Check)}
    loads = [statement for statement in statements if isinstance(statement, Load)]
    for load in loads:
        lengths[load.param] += sum(LONGEST * known(coefficient) for _, coefficient in load.gathered)
    places = {name for load in loads for name, _ in load.gathered}
    telling = {each for name in places for each in operand_statements(name, made).values()}

    def content(param: Param) -> torch.Tensor:
        if is_floating(param.dtype):
            return torch.randn(lengths[param.name], generator=generator).to(param.dtype)
        end = 2 if any(isinstance(each, Load) and each.param == param.name for each in telling) else 7
        return torch.randint(0, end, (lengths[param.name],), generator=generator).to(param.dtype)

    return (
        [content(param) for param in kernel.params if param.access == "read"],
        [content(param) for param in kernel.params if param.access != "read"],
    )
