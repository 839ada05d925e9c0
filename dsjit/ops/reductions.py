"""Rows of reductions: combine elements along dimensions.

What is not one combination (`mean`, `var`, `max` with indices, norms) is a decomposition into these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch

from dsjit.ir.dtypes import compute_dtype, is_integral
from dsjit.ir.graph import Arg, Node
from dsjit.ir.kernel import ReduceKind
from dsjit.ops.binding import bind
from dsjit.ops.row import OpRow, Reduction

__all__ = ["ROWS", "listed_dims"]


def listed_dims(dim: int | tuple[int, ...] | None, rank: int) -> tuple[int, ...]:
    """Non-negative, sorted dimensions; None and () stand for all of them. A 0-dim tensor has none."""
    if rank == 0:
        return ()
    if dim is None or dim == ():
        return tuple(range(rank))
    dims = dim if isinstance(dim, tuple) else (dim,)
    return tuple(sorted(d + rank if d < 0 else d for d in dims))


def _dims(bound: Mapping[str, Arg], rank: int) -> tuple[int, ...]:
    return listed_dims(bound.get("dim"), rank)


def _keepdim(bound: Mapping[str, Arg]) -> bool:
    return bool(bound.get("keepdim", False))


def _sum_dtype(bound: Mapping[str, Arg], source: torch.dtype) -> torch.dtype:
    requested: torch.dtype | None = bound["dtype"]
    if requested is not None:
        return requested
    return torch.int64 if is_integral(source) or source is torch.bool else source


def _same_dtype(bound: Mapping[str, Arg], source: torch.dtype) -> torch.dtype:
    return source


def _index_dtype(bound: Mapping[str, Arg], source: torch.dtype) -> torch.dtype:
    return torch.int64


def _truth_dtype(bound: Mapping[str, Arg], source: torch.dtype) -> torch.dtype:
    """uint8 is torch's older bool: its `any` and `all` stay uint8."""
    return torch.uint8 if source is torch.uint8 else torch.bool


def _in_result(source: torch.dtype, result: torch.dtype) -> torch.dtype:
    return compute_dtype(result)


def _in_source(source: torch.dtype, result: torch.dtype) -> torch.dtype:
    return compute_dtype(source)


def _in_bool(source: torch.dtype, result: torch.dtype) -> torch.dtype:
    return torch.bool


def _sum_is_accumulated_exactly(node: Node) -> bool:
    """Narrowing to bf16, fp16 or a narrow integer dtype happens before ATen adds: only wide sums are covered."""
    source = bind(node)["self"].type.dtype
    result = node.output.type.dtype
    if compute_dtype(result) is not result:
        return source is result
    return result in (torch.float32, torch.float64, torch.int64)


def _not_bool(node: Node) -> bool:
    return bind(node)["self"].type.dtype is not torch.bool


def _rows() -> list[OpRow]:
    rows: list[OpRow] = []

    def add(
        names: tuple[str, ...],
        kind: ReduceKind,
        compute: Callable[[torch.dtype, torch.dtype], torch.dtype],
        output: Callable[[Mapping[str, Arg], torch.dtype], torch.dtype],
        when: Callable[[Node], bool] | None = None,
    ) -> None:
        rows.extend(OpRow(f"aten.{n}", Reduction(kind, _dims, _keepdim, compute, output), when) for n in names)

    add(("sum.default", "sum.dim_IntList"), "sum", _in_result, _sum_dtype, _sum_is_accumulated_exactly)
    add(("prod.default", "prod.dim_int"), "prod", _in_result, _sum_dtype, _sum_is_accumulated_exactly)
    add(("amax.default", "max.default"), "max", _in_source, _same_dtype, _not_bool)
    add(("amin.default", "min.default"), "min", _in_source, _same_dtype, _not_bool)
    add(("any.default", "any.dim", "any.dims"), "any", _in_bool, _truth_dtype)
    add(("all.default", "all.dim", "all.dims"), "all", _in_bool, _truth_dtype)
    add(("argmax.default",), "argmax", _in_source, _index_dtype)
    add(("argmin.default",), "argmin", _in_source, _index_dtype)
    return rows


ROWS: Final[Mapping[str, OpRow]] = {entry.name: entry for entry in _rows()}
