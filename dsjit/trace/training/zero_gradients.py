"""The recorded backward runs on gradients of zeros: what is linear in them is zeros, and is not computed.

Nobody sees the numbers of that run, but they would cost as much as a real backward. Where the layout of eager's result
is certain, memory that nobody has touched yet stands for it; any other op runs, on zeros.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy
import torch

from dsjit.ir.graph import Node, contiguous_strides, is_dense
from dsjit.trace.recording.arguments import tensors_in
from dsjit.trace.recording.schema import traits

__all__ = ["ZeroGradients"]

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Layout:
    """Of a result. strides: in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


LayoutRule: TypeAlias = Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Layout | None, ...]]
"""From the arguments of an op, the layouts of its results (None for one that is None); () where that is not certain."""

WORTH: Final = 4096
"""Elements of the largest operand from which on an op costs more than to find out that its result is zeros."""


def _row_major(shape: Iterable[int], dtype: torch.dtype) -> Layout:
    sizes = tuple(shape)
    return Layout(sizes, contiguous_strides(sizes), dtype)


def _of_product(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Layout | None, ...]:
    """`mm` and `bmm` return row-major memory (aten/src/ATen/native/LinearAlgebra.cpp, TORCH_META_FUNC)."""
    left, right = args[:2]
    if kwargs or len(args) > 2:
        return ()
    return (_row_major((*left.shape[:-1], right.shape[-1]), left.dtype),)


def _of_map(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Layout | None, ...]:
    """Elementwise on dense operands that are laid out alike: as they are (TensorIterator, `fast_set_up`)."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    first = max(tensors, key=torch.Tensor.dim)
    shape, strides = tuple(first.shape), first.stride()
    for other in tensors:
        alike = tuple(other.shape) == shape and other.stride() == strides
        if other.dtype is not first.dtype or not (alike or other.dim() == 0):
            return ()
    if any(isinstance(value, torch.memory_format | torch.dtype) for value in (*args, *kwargs.values())):
        return ()
    known = first.is_floating_point() and is_dense(shape, strides)
    return (Layout(shape, strides, first.dtype),) if known else ()


def _of_sum(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Layout | None, ...]:
    """Row-major (aten/src/ATen/native/ReduceOpsUtils.h, `resize_reduction`)."""
    operand, dims = args[0], args[1]
    if kwargs or not dims or not operand.is_floating_point():
        return ()
    reduced = {dim % operand.dim() for dim in dims}
    keeps = len(args) > 2 and args[2]
    sizes = [1 if d in reduced else size for d, size in enumerate(operand.shape) if keeps or d not in reduced]
    return (_row_major(sizes, operand.dtype),)


def _of_clone(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Layout | None, ...]:
    if kwargs.get("memory_format") is not torch.contiguous_format:
        return _of_map(args, kwargs)
    return (_row_major(args[0].shape, args[0].dtype),)


def _of_embedding(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Layout | None, ...]:
    """The gradient of a table: row-major, `args[2]` rows (aten/src/ATen/native/Embedding.cpp)."""
    return (_row_major((args[2], args[0].shape[-1]), args[0].dtype),)


def _row_major_like(position: int, dtype_at: int | None = None) -> LayoutRule:
    """Row-major, of the shape and dtype of an argument. dtype_at: the position of a dtype that has to be the same."""

    def rule(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Layout | None, ...]:
        like = args[position]
        if kwargs or (dtype_at is not None and args[dtype_at] is not like.dtype):
            return ()
        return (_row_major(like.shape, like.dtype),)

    return rule


def _masked(*likes: int) -> LayoutRule:
    """Row-major gradients of row-major arguments; the last argument tells which are wanted.

    likes: positions of the arguments, or of their sizes.
    """

    def rule(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Layout | None, ...]:
        gradient, wanted = args[0], args[-1]
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        if kwargs or any(each.stride() != contiguous_strides(tuple(each.shape)) for each in tensors):
            return ()
        if any(each.dtype is not gradient.dtype for each in tensors):
            return ()
        sizes = [args[at].shape if isinstance(args[at], torch.Tensor) else args[at] for at in likes]
        return tuple(
            [_row_major(size, gradient.dtype) if ask else None for size, ask in zip(sizes, wanted, strict=True)]
        )

    return rule


def _unknown(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Layout | None, ...]:
    return ()


LINEAR: Final[Mapping[Any, tuple[tuple[int, ...], LayoutRule]]] = {
    aten._log_softmax_backward_data.default: ((0,), _row_major_like(0, dtype_at=3)),
    aten._softmax_backward_data.default: ((0,), _row_major_like(0, dtype_at=3)),
    aten._to_copy.default: ((0,), _unknown),
    aten._unsafe_view.default: ((0,), _unknown),
    aten.bmm.default: ((0, 1), _of_product),
    aten.clone.default: ((0,), _of_clone),
    aten.convolution_backward.default: ((0,), _masked(1, 2, 3)),
    aten.div.Scalar: ((0,), _of_map),
    aten.div.Tensor: ((0,), _of_map),
    aten.elu_backward.default: ((0,), _unknown),
    aten.embedding_dense_backward.default: ((0,), _of_embedding),
    aten.gelu_backward.default: ((0,), _of_map),
    aten.hardsigmoid_backward.default: ((0,), _unknown),
    aten.hardswish_backward.default: ((0,), _unknown),
    aten.hardtanh_backward.default: ((0,), _unknown),
    aten.leaky_relu_backward.default: ((0,), _unknown),
    aten.log_sigmoid_backward.default: ((0,), _unknown),
    aten.max_pool2d_with_indices_backward.default: ((0,), _unknown),
    aten.mean.dim: ((0,), _of_sum),
    aten.mm.default: ((0, 1), _of_product),
    aten.mul.Scalar: ((0,), _of_map),
    aten.mul.Tensor: ((0, 1), _of_map),
    aten.native_batch_norm_backward.default: ((0,), _masked(1, 2, 2)),
    aten.native_dropout_backward.default: ((0,), _unknown),
    aten.native_layer_norm_backward.default: ((0,), _masked(1, 5, 6)),
    aten.neg.default: ((0,), _of_map),
    aten.nll_loss_backward.default: ((0,), _row_major_like(1)),
    aten.select_backward.default: ((0,), _unknown),
    aten.sigmoid_backward.default: ((0,), _of_map),
    aten.silu_backward.default: ((0,), _of_map),
    aten.slice_backward.default: ((0,), _unknown),
    aten.softplus_backward.default: ((0,), _unknown),
    aten.sum.dim_IntList: ((0,), _of_sum),
    aten.tanh_backward.default: ((0,), _of_map),
    aten.threshold_backward.default: ((0,), _of_map),
}
"""Positions of arguments: zeros in one of them make all results zeros, whatever finite numbers the others hold."""

ADDITIVE: Final[Mapping[Any, LayoutRule]] = {
    aten.add.Tensor: _of_map,
    aten.cat.default: _unknown,
    aten.stack.default: _unknown,
    aten.sub.Tensor: _of_map,
}
"""Ops whose results are zeros when all tensors are."""


class ZeroGradients:
    """Knows which tensors of a run hold zeros. `run` is to be the recorder's `call`."""

    def __init__(self, zeros: Sequence[torch.Tensor]) -> None:
        self._known: dict[int, weakref.ref[torch.Tensor]] = {}
        self._add(zeros)

    def run(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `node.op`: of that layout, but not computed when it is known."""
        tensors = tensors_in(args, kwargs)
        facts = traits(node.op)
        if (facts.writes or facts.writes_kwargs) and not all(map(self._is_zeros, tensors)):
            self._known.clear()  # they may share memory with what is written
        if not any(map(self._is_zeros, tensors)):
            return node.op(*args, **kwargs)
        rule = self._rule(node.op, args, tensors)
        layouts: tuple[Layout | None, ...] = ()
        if rule is not None and _are_plain(tensors) and max(tensor.numel() for tensor in tensors) >= WORTH:
            layouts = rule(args, kwargs)
        result = _zeros(layouts) if layouts else node.op(*args, **kwargs)
        if rule is not None or (facts.aliases and self._is_zeros(args[0])):
            self._add(tensors_in((result,), {}))
        return result

    def _rule(self, op: Any, args: tuple[Any, ...], tensors: Sequence[torch.Tensor]) -> LayoutRule | None:
        """None: the results may be other than zeros."""
        positions, rule = LINEAR.get(op, ((), _unknown))
        if any(isinstance(args[n], torch.Tensor) and self._is_zeros(args[n]) for n in positions if n < len(args)):
            return rule
        return ADDITIVE.get(op) if all(map(self._is_zeros, tensors)) else None

    def _add(self, tensors: Sequence[torch.Tensor]) -> None:
        self._known.update({id(tensor): weakref.ref(tensor) for tensor in tensors})

    def _is_zeros(self, tensor: torch.Tensor) -> bool:
        known = self._known.get(id(tensor))
        return known is not None and known() is tensor


def _are_plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether the layout rules hold: they are those of CPUs' kernels."""
    return all(tensor.layout is torch.strided and tensor.device.type == "cpu" for tensor in tensors)


def _zeros(layouts: Sequence[Layout | None]) -> Any:
    made = tuple([None if layout is None else _zeros_of(layout) for layout in layouts])
    return made if len(made) > 1 else made[0]


def _zeros_of(layout: Layout) -> torch.Tensor:
    """Pages that the system gives when they are first read."""
    memory = torch.from_numpy(numpy.zeros(math.prod(layout.shape) * layout.dtype.itemsize, numpy.uint8))
    return memory.view(layout.dtype).as_strided(layout.shape, layout.strides)
