"""How ops without a kernel are called: into a given buffer where ATen can, and through the cheapest entry in Python.

Calling an `OpOverload` matches the arguments against its schema in generic code (4 to 6 us); the functions of
`torch` that are generated for one op each parse the same arguments in about half of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

import torch
from torch._ops import OpOverload

from dsjit.ops.embedding_gradient import add_embedding_gradient

__all__ = ["fast_callable", "out_variant", "writes_over_first"]

aten = torch.ops.aten
nn = torch._C._nn


def _index(tensor: torch.Tensor, indices: Sequence[torch.Tensor | None], *, out: torch.Tensor | None = None) -> Any:
    """`aten.index`. Rows by number are copied whole by `index_select`, in a third of the time; it takes no negative
    numbers, and says so."""
    rows = indices[0]
    by_number = rows is not None and rows.dtype in (torch.int64, torch.int32) and rows.dim() == 1
    if by_number and len(indices) == 1 and tensor.dim() > 1 and tensor.is_cpu and tensor.is_contiguous():
        assert rows is not None
        try:
            return torch.index_select(tensor, 0, rows, out=out)
        except (IndexError, RuntimeError):
            pass  # `index` knows what to do with them
    if out is None:
        return aten.index.Tensor(tensor, indices)
    return aten.index.Tensor_out(tensor, indices, out=out)


def _index_put(
    tensor: torch.Tensor, indices: tuple[torch.Tensor | None, ...], values: torch.Tensor, accumulate: bool = False
) -> Any:
    """`aten.index_put`. The quick entry refuses None among the indices, for a dimension that is taken whole."""
    if any(index is None for index in indices):
        return aten.index_put.default(tensor, indices, values, accumulate)
    return torch.index_put(tensor, indices, values, accumulate)


FAST_ENTRIES: Final[Mapping[OpOverload, Callable[..., Any]]] = {
    aten.mm.default: torch.mm,
    aten.bmm.default: torch.bmm,
    aten.mv.default: torch.mv,
    aten.dot.default: torch.dot,
    aten.addmm.default: torch.addmm,
    aten.baddbmm.default: torch.baddbmm,
    aten.addbmm.default: torch.addbmm,
    aten.addmv.default: torch.addmv,
    aten.cat.default: torch.cat,
    aten.convolution.default: torch.convolution,
    aten.embedding.default: torch.embedding,
    aten.index.Tensor: _index,
    aten.index_select.default: torch.index_select,
    aten.gather.default: torch.gather,
    aten.scatter.src: torch.scatter,
    aten.scatter.value: torch.scatter,
    aten.scatter_add.default: torch.scatter_add,
    aten.index_put.default: _index_put,
    aten.topk.default: torch.topk,
    aten.sort.default: torch.sort,
    aten.sort.stable: torch.sort,
    aten.cumsum.default: torch.cumsum,
    aten.cumprod.default: torch.cumprod,
    aten.roll.default: torch.roll,
    aten.flip.default: torch.flip,
    aten.tril.default: torch.tril,
    aten.triu.default: torch.triu,
    aten.constant_pad_nd.default: torch.constant_pad_nd,
    aten.clone.default: torch.clone,
    aten._softmax.default: torch._softmax,
    aten._log_softmax.default: torch._log_softmax,
    aten.native_layer_norm.default: torch.native_layer_norm,
    aten.native_group_norm.default: torch.native_group_norm,
    aten.native_batch_norm.default: torch.native_batch_norm,
    aten.max_pool2d_with_indices.default: nn.max_pool2d_with_indices,
    aten.avg_pool2d.default: nn.avg_pool2d,
    aten._adaptive_avg_pool2d.default: torch._adaptive_avg_pool2d,
    aten.upsample_nearest2d.default: nn.upsample_nearest2d,
    aten.upsample_bilinear2d.default: nn.upsample_bilinear2d,
    aten._scaled_dot_product_flash_attention_for_cpu.default: torch._scaled_dot_product_flash_attention_for_cpu,
}
"""A function that does what this overload does when given the overload's arguments, in schema order: of `torch`, but
for those that are quicker in another way."""


def fast_callable(op: OpOverload) -> Callable[..., Any]:
    """A callable with the arguments and results of `op`, and less overhead where `torch` has one; else `op` itself."""
    return FAST_ENTRIES.get(op, op)


_OVER_FIRST: Final[frozenset[Callable[..., Any]]] = frozenset(
    {
        add_embedding_gradient,
        aten.index_add.default,
        aten.index_copy.default,
        aten.scatter.src,
        aten.scatter.value,
        aten.scatter_add.default,
        aten.scatter_reduce.two,
    }
)
"""What takes `out=`, which may be the first argument itself, and leaves there what it does not write."""


def writes_over_first(op: Callable[..., Any]) -> bool:
    """Whether `out=` of its `out_variant` may be the first argument itself, which is not copied then."""
    return op in _OVER_FIRST


@cache
def out_variant(op: Callable[..., Any]) -> Callable[..., Any] | None:
    """A callable that takes the arguments of `op` and `out=`, one tensor, which it fills without a copy; else None.

    ATen has an `out=` overload for nearly every op. Those that carry the tag `generated` run the functional op and
    copy its result: they gain nothing and count as absent.
    """
    if not isinstance(op, OpOverload):
        return op if op in _OVER_FIRST else None
    overload = _out_overload(op)
    if overload is None or torch.Tag.generated in overload.tags or not _runs_on_cpu(overload):
        return None
    function: Callable[..., Any] = FAST_ENTRIES.get(op, overload)
    return function


def _out_overload(op: OpOverload) -> OpOverload | None:
    """The overload with the arguments of `op` and one more: the tensor `out`."""
    if len(op._schema.returns) != 1:
        return None
    if any(argument.name == "reduction" for argument in op._schema.arguments):
        # The losses use `out` for their unreduced values first, and resize it.
        return None
    wanted = [(argument.name, str(argument.type)) for argument in op._schema.arguments]
    packet = op.overloadpacket
    for name in packet.overloads():
        candidate: OpOverload = getattr(packet, name)
        arguments = candidate._schema.arguments
        written = [argument.name for argument in arguments if argument.is_out]
        given = [(argument.name, str(argument.type)) for argument in arguments if not argument.is_out]
        if written == ["out"] and given == wanted:
            return candidate
    return None


def _runs_on_cpu(op: OpOverload) -> bool:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return any(has_kernel(op._name, key) for key in ("CPU", "CompositeExplicitAutograd"))
