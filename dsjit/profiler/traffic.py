"""What a step has to do: bytes that must cross the memory bus, and floating point operations."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from math import prod
from typing import Any, Final

import torch
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from dsjit.codegen.nest import statement_index
from dsjit.fusion.lower import FusedKernel
from dsjit.ir.graph import Arg, Node, Value
from dsjit.ir.kernel import Apply, Cast, Kernel, Load, Reduce, Store, names_read, typical
from dsjit.ops.direct_convolution import direct_convolution
from dsjit.ops.gathers import GATHERS

__all__ = ["kernel_flops", "kernel_traffic", "node_flops", "node_traffic", "reads_across"]


def kernel_traffic(kernel: Kernel, values: tuple[Value, ...]) -> tuple[int, int]:
    """(bytes read, bytes written), each element once. `values` are what the params stand for."""
    sizes = _axis_sizes(kernel)
    read: dict[str, dict[Hashable, int]] = {}
    written: dict[str, int] = {}
    varies: dict[str, frozenset[str]] = {}
    for block in kernel.blocks:
        for stmt in block.body:
            index = statement_index(stmt)
            axes = frozenset([axis for axis, _ in index.terms] if index is not None else ())
            if isinstance(stmt, Load):
                axes = axes.union(*[varies[name] for name, _ in stmt.gathered])
                read.setdefault(stmt.param, {})[stmt.index, stmt.gathered] = _points(axes, sizes)
            elif isinstance(stmt, Store):
                written[stmt.param] = _points(axes, sizes)
            if isinstance(stmt, Load | Apply | Cast):  # what may tell a place
                varies[stmt.result] = axes.union(*[varies.get(name, frozenset()) for name in names_read(stmt)])
    total_read = total_written = 0
    for param, value in zip(kernel.params, values, strict=True):
        if param.name in written:
            total_written += written[param.name] * param.dtype.itemsize
        elif param.name in read:
            # Several windows on one buffer overlap at most to the whole of it.
            points = min(sum(read[param.name].values()), max(value.type.numel, 1))
            total_read += points * param.dtype.itemsize
    return total_read, total_written


def _axis_sizes(kernel: Kernel) -> dict[str, int]:
    sizes = {axis.name: typical(axis.size) for axis in kernel.outer}
    for block in kernel.blocks:
        sizes.update((axis.name, typical(axis.size)) for axis in block.axes)
    return sizes


def _points(axes: Iterable[str], sizes: Mapping[str, int]) -> int:
    count: int = prod([sizes[axis] for axis in axes])
    return count


_COPIES_FIRST: Final = frozenset(
    {torch.ops.aten.addmm.default, torch.ops.aten.addmv.default, torch.ops.aten.baddbmm.default}
)
"""Ops that copy their first operand into the result, and then add the product to it."""


def node_traffic(node: Node) -> tuple[int, int]:
    """(bytes read, bytes written) of one op run on its own by torch: its operands and its results, each once; the
    result twice more, written and read, by products that start from a copy of an operand."""
    if node.op in GATHERS:  # of the table, as much is read as is written
        table, *others = dict.fromkeys(node.inputs())
        picked = node.output.type.nbytes
        return min(picked, table.type.nbytes) + sum(value.type.nbytes for value in others), picked
    read = sum(value.type.nbytes for value in dict.fromkeys(node.inputs()))
    written = sum(value.type.nbytes for value in node.outputs)
    if node.op in _COPIES_FIRST:
        return read + written, 2 * written
    return read, written


def kernel_flops(kernel: Kernel) -> int:
    """Operations on floating point numbers, an exponential being one; sums count one for each element."""
    outer = prod(typical(axis.size) for axis in kernel.outer)
    total = 0
    for block in kernel.blocks:
        points = outer * prod(typical(axis.size) for axis in block.axes)
        counted = [stmt for stmt in block.body if isinstance(stmt, Apply | Reduce) and stmt.dtype.is_floating_point]
        total += points * len(counted)
    return total


def node_flops(node: Node) -> int:
    """Of a product, a convolution or attention, as torch counts them; 0 for every other op."""
    if node.op is direct_convolution:
        image, weight = node.args[:2]
        _, _, height, width, _, _ = weight.type.shape
        return int(2 * node.output.type.numel * image.type.shape[1] * height * width)
    if node.op is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
        query, key, value = (arg.type.shape for arg in node.args[:3])
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]
    count = flop_registry.get(getattr(node.op, "overloadpacket", None))
    if count is None:
        return 0
    shapes = tuple([value.type.shape for value in node.outputs])
    counted = count(*map(_shape, node.args), out_val=shapes[0] if len(shapes) == 1 else shapes)
    return int(counted)


def _shape(arg: Arg) -> Any:
    if isinstance(arg, Value):
        return arg.type.shape
    return [_shape(item) for item in arg] if isinstance(arg, tuple) else arg


def reads_across(fused: FusedKernel) -> tuple[Value, ...]:
    """What the kernel reads with a stride: neighbouring lanes take elements that are far apart in memory."""
    kernel = fused.kernel
    names = {param.name: value for value, param in zip(fused.values, kernel.params, strict=True)}
    found: dict[Value, None] = {}
    for block in kernel.blocks:
        for stmt in block.body:
            if isinstance(stmt, Load) and kernel.vector_axis is not None:
                coefficient = typical(stmt.index.coefficient(kernel.vector_axis))
                if coefficient not in (0, 1, -1):
                    found[names[stmt.param]] = None
    return tuple(found)
