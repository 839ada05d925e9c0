"""Which Values of a Graph must have eager's very bits.

Sums are added up in another order than eager's, transcendental functions have their own last bit, and matrix products
run in a library that may be called otherwise. Everything else is exact: IEEE 754 fixes + - * / to the last bit, and
comparing, selecting, rounding, casting and moving data leave no choice. It fixes the square root, too, and a compiled
one is right; eager's comes from a vector library, which rounds some otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch

from dsjit.ir.graph import Graph, Node, Value
from dsjit.ops.properties import shares_memory
from dsjit.ops.row import View
from dsjit.ops.table import row_of

__all__ = ["chooses", "exact_values"]

_CHOOSING: Final = frozenset(
    {"relu", "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "where", "masked_fill", "clone", "copy", "cat",
     "stack", "amax", "amin", "max", "min", "index", "index_select", "gather", "embedding", "sort", "topk",
     "masked_select", "scatter", "constant_pad_nd", "flip", "roll", "tril", "triu", "repeat", "cummax", "cummin",
     "threshold_backward", "detach"}
)  # fmt: skip
"""Names of ops of aten whose results are elements of their operands, or constants."""

_EXACT: Final = _CHOOSING | frozenset(
    {"add", "sub", "rsub", "mul", "div", "neg", "abs", "reciprocal", "eq", "ne", "lt", "le", "gt", "ge",
     "logical_and", "logical_or", "logical_xor", "logical_not", "bitwise_and", "bitwise_or", "bitwise_xor",
     "bitwise_not", "floor", "ceil", "trunc", "round", "sign", "sgn", "signbit", "isnan", "isinf", "_to_copy",
     "fill", "fill_scalar", "argmax", "argmin", "any", "all", "full", "full_like", "zeros", "zeros_like", "ones",
     "ones_like", "arange", "scalar_tensor", "eye", "new_zeros", "new_ones", "new_full", "nonzero", "index_put"}
)  # fmt: skip
"""Names of ops of aten. """

_WITH_FACTOR: Final = ("add", "sub", "rsub")
"""A C++ compiler may contract these when the factor is not 1."""


def chooses(op: object) -> bool:
    """Whether results of `op` are elements of its operands: nothing is rounded."""
    return _name(op) in _CHOOSING


def _name(op: object) -> str:
    """Of an overload of aten: `add` for `aten::add.Tensor`."""
    namespace, _, overload = str(getattr(op, "_name", "")).partition("::")
    return overload.partition(".")[0] if namespace == "aten" else ""


def exact_values(graph: Graph, given: Iterable[Value]) -> frozenset[Value]:
    """given: the inputs and constants whose bits are eager's."""
    found = set(given)
    for node in graph.nodes:
        if found.issuperset(node.inputs()) and _is_exact(node):
            found.update(node.outputs)
    return frozenset(found)


def _is_exact(node: Node) -> bool:
    if node.effect or shares_memory(node.op) or not any(_is_rounded(value.type.dtype) for value in node.outputs):
        return True
    row = row_of(node.op)
    if row is not None and isinstance(row.rule, View):
        return True
    name = _name(node.op)
    if name not in _EXACT:
        return False
    factor = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
    return factor == 1 or name not in _WITH_FACTOR


def _is_rounded(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex
