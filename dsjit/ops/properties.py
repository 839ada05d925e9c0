"""What is known of an op beyond its row: sharing memory, being moved or merged, sizes that depend on data."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch

from dsjit.ir.graph import Node, Value
from dsjit.ops.binding import bind
from dsjit.ops.strided import strided_view

__all__ = [
    "draws",
    "dynamic_dims",
    "is_dynamic",
    "is_pure",
    "is_reproducible",
    "is_undefined",
    "may_raise",
    "returns_many",
    "shares_memory",
]

aten = torch.ops.aten

_SHARE_WITHOUT_SAYING: Final[frozenset[Any]] = frozenset({aten._unsafe_view.default, strided_view})
"""Ops that have no schema, or one that promises a fresh result, and whose result is the argument's memory."""


@cache
def shares_memory(op: Callable[..., Any]) -> bool:
    """Whether results of `op` are, or may be, memory of an argument: by its schema's alias annotations."""
    if op in _SHARE_WITHOUT_SAYING:
        return True
    schema = getattr(op, "_schema", None)
    return schema is not None and any(
        result.alias_info is not None and not result.alias_info.is_write for result in schema.returns
    )


@cache
def _is_deterministic(op: Callable[..., Any]) -> bool:
    return torch.Tag.nondeterministic_seeded not in getattr(op, "tags", ())


def draws(node: Node) -> bool:
    """Whether a node with an effect draws random numbers: attention does not where it drops nothing, nor does its
    gradient, although their schemas say so."""
    return node.effect and not ("attention" in str(node.op) and bind(node).get("dropout_p") == 0)


_UNDEFINED: Final[frozenset[Any]] = frozenset(
    {
        aten.empty.memory_format,
        aten.empty_like.default,
        aten.empty_permuted.default,
        aten.empty_strided.default,
        aten.new_empty.default,
        aten.new_empty_strided.default,
    }
)
"""Factories whose content is not defined: it is what happens to be in memory."""


def is_pure(node: Node) -> bool:
    """Whether the node may be removed, merged with an equal node, or run at another time.

    Not so for effects, for ops that write to clones of their arguments, and for ops that draw random numbers.
    """
    return not node.effect and not node.mutates and _is_deterministic(node.op)


def is_reproducible(node: Node) -> bool:
    """Whether equal arguments give equal results, at compile time and on every run.

    Ops from outside torch are not trusted: one may read a clock, whatever its schema says.
    """
    return is_pure(node) and getattr(node.op, "namespace", "") in ("aten", "prims") and node.op not in _UNDEFINED


def is_undefined(op: Callable[..., Any]) -> bool:
    """Whether the content of the result is whatever happens to be in memory."""
    return op in _UNDEFINED


_INDEXED: Final = frozenset(
    {"index", "_unsafe_index", "index_select", "index_put", "index_add", "index_copy", "index_fill", "index_reduce",
     "gather", "scatter", "scatter_add", "scatter_reduce", "take", "put", "embedding", "_embedding_bag", "one_hot",
     "nll_loss_forward", "nll_loss2d_forward", "repeat_interleave", "bincount", "masked_scatter"}
)  # fmt: skip
"""Names of aten ops that refuse an index, a class or a count which is out of range."""

_DIVIDED: Final = frozenset({"div", "floor_divide", "remainder", "fmod"})


def may_raise(node: Node) -> bool:
    """Whether what the operands hold may make torch refuse the call: an index out of range, an integer divisor of 0.

    A call whose result nobody reads must run all the same.
    """
    namespace, _, rest = str(getattr(node.op, "_name", "")).partition("::")
    name = rest.partition(".")[0]
    if namespace != "aten" or not node.outputs:
        return False
    if name in _DIVIDED:
        dtype = node.outputs[0].type.dtype
        return isinstance(node.args[-1], Value) and not dtype.is_floating_point and not dtype.is_complex
    return name in _INDEXED


def is_dynamic(node: Node) -> bool:
    """Whether the contents of the operands decide the shape of the result; indexing by integers is static."""
    if node.op is torch.ops.aten.index.Tensor:
        return any(value.type.dtype in (torch.bool, torch.uint8) for value in node.args[1] if value is not None)
    return torch.Tag.dynamic_output_shape in getattr(node.op, "tags", ())


def dynamic_dims(node: Node) -> tuple[tuple[int, ...], ...] | None:
    """Of an op that `is_dynamic`: for each result, the dimensions whose sizes the contents decide; None when that is
    not known. All of one op are one size."""
    if node.op is aten.index.Tensor:
        return _indexed_dims(node)
    if node.op is aten.unique_dim.default:
        dim = node.args[1]
        return ((dim + len(node.args[0].type.shape) if dim < 0 else dim,), (), (0,))
    return _DYNAMIC_DIMS.get(node.op)


_DYNAMIC_DIMS: Final[dict[Any, tuple[tuple[int, ...], ...]]] = {
    aten.nonzero.default: ((0,),),
    aten.masked_select.default: ((0,),),
    aten.repeat_interleave.Tensor: ((0,),),
    aten.bincount.default: ((0,),),
    aten._unique.default: ((0,), ()),
    aten._unique2.default: ((0,), (), (0,)),
}


def _indexed_dims(node: Node) -> tuple[tuple[int, ...], ...] | None:
    """`x[mask]`, and masks beside integers that are one-dimensional at most: they become one dimension."""
    indices = node.args[1]
    given = [place for place, index in enumerate(indices) if index is not None]
    for place in given:
        type_ = indices[place].type
        if type_.dtype not in (torch.bool, torch.uint8) and len(type_.shape) > 1:
            return None
    together = given == list(range(given[0], given[-1] + 1))
    return ((given[0] if together else 0,),)


def returns_many(node: Node) -> bool:
    """Whether the op returns a sequence of tensors, if of one alone."""
    schema = getattr(node.op, "_schema", None)
    if schema is None:
        return False
    return len(schema.returns) > 1 or "[]" in str(schema.returns[0].type)
