"""Which templates stand for library calls and the kernels around them: all of them, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from dsjit.codegen.templates.attention import FusedAttention, fuse_attention
from dsjit.codegen.templates.product import FusedProduct, fuse_products, matrix_precision
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.planner import LibraryUnit
from dsjit.fusion.views import Views
from dsjit.ir.graph import Graph

__all__ = ["fuse_templates"]

Unit: TypeAlias = FusedKernel | LibraryUnit


def fuse_templates(
    units: Sequence[Unit],
    views: Views,
    graph: Graph,
    fast: bool,
    prefers: Callable[[FusedProduct | FusedAttention], bool],
) -> list[Unit]:
    """`units` of `graph`, with attention and products as Kernels where `prefers` says yes. fast: operands of float32
    products may be rounded, as with the option numerics="fast"."""
    results, precision = tuple(graph.results()), matrix_precision(fast)
    # The products of attention are part of it.
    units = fuse_attention(units, views, results, precision, prefers, graph.next_id())
    return fuse_products(units, views, results, precision, prefers)
