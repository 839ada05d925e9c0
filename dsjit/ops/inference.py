"""Types of results, from the types of arguments, without running torch.

Broadcasting and type promotion as torch has them (https://pytorch.org/docs/stable/tensor_attributes.html#type-promotion-doc):
tensors with dimensions, 0-dim tensors and Python numbers are three levels; a level wins over the ones below unless
its dtype is of a lower category (bool < integer < floating < complex).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, lru_cache

import torch

from dsjit.ir.graph import Arg, TensorType, Value, contiguous_strides, is_dense
from dsjit.ops.row import Pointwise, Reduction

__all__ = [
    "broadcast_shape",
    "dense_strides",
    "pointwise_type",
    "promoted_dtype",
    "reduced_shape",
    "reduction_type",
]

CPU = torch.device("cpu")


def promoted_dtype(args: Iterable[Arg]) -> torch.dtype:
    """The dtype to which torch promotes `args` (Values and Python numbers; None counts for nothing).

    Raises ValueError when there is neither a Value nor a number.
    """
    dimensioned: torch.dtype | None = None
    zero_dim: torch.dtype | None = None
    number: torch.dtype | None = None
    for arg in args:
        if isinstance(arg, Value):
            dtype = arg.type.dtype
            if arg.type.shape:
                dimensioned = dtype if dimensioned is None else _promote(dimensioned, dtype)
            else:
                zero_dim = dtype if zero_dim is None else _promote(zero_dim, dtype)
        elif arg is not None:
            dtype = number_dtype(arg)
            number = dtype if number is None else _promote(number, dtype)
    result = _combine(_combine(dimensioned, zero_dim), number)
    if result is None:
        raise ValueError("no operand has a dtype")
    return result


def number_dtype(number: bool | int | float | complex) -> torch.dtype:
    """The dtype that torch gives a Python number on its own."""
    if isinstance(number, bool):
        return torch.bool
    if isinstance(number, int):
        return torch.int64
    if isinstance(number, float):
        return torch.get_default_dtype()
    return torch.get_default_dtype().to_complex()


def _combine(higher: torch.dtype | None, lower: torch.dtype | None) -> torch.dtype | None:
    if higher is None or lower is None:
        return higher or lower
    if higher.is_complex:
        return higher
    if higher.is_floating_point:
        return higher.to_complex() if lower.is_complex else higher
    if higher is torch.bool or lower.is_floating_point or lower.is_complex:
        return _promote(higher, lower)
    return higher


@cache
def _promote(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    return torch.promote_types(a, b)


def broadcast_shape(shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape to which all of `shapes` broadcast. Raises ValueError when they do not."""
    result: tuple[int, ...] = ()
    for shape in shapes:
        if shape == result or not shape:
            continue
        if not result:
            result = shape
            continue
        longer, shorter = (result, shape) if len(result) >= len(shape) else (shape, result)
        lead = len(longer) - len(shorter)
        sizes = list(longer)
        for d, size in enumerate(shorter, lead):
            if sizes[d] == 1:
                sizes[d] = size
            elif size not in (1, sizes[d]):
                raise ValueError(f"shapes {result} and {shape} do not broadcast")
        result = tuple(sizes)
    return result


def dense_strides(shape: tuple[int, ...], operands: Iterable[TensorType]) -> tuple[int, ...]:
    """Strides of a pointwise result of `shape`: those of the first dense operand of that shape, else row-major."""
    row_major = _row_major(shape)
    for operand in operands:
        if operand.shape == shape:
            return operand.strides if is_dense(shape, operand.strides) else row_major
    return row_major


@lru_cache(maxsize=4096)
def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return contiguous_strides(shape)


def pointwise_type(rule: Pointwise, bound: Mapping[str, Arg]) -> TensorType:
    """The type of the output of a pointwise op, from its bound schema arguments. Raises ValueError if shapes clash."""
    operands = [bound[name] for name in rule.tensors]
    values = [arg for arg in operands if isinstance(arg, Value)]
    values += [bound[name] for name in rule.shape_only]
    types = [value.type for value in values]
    shape = broadcast_shape([type_.shape for type_ in types]) if types else _requested_shape(bound)
    device = types[0].device if types else torch.device(bound.get("device") or CPU)
    memory_format = bound.get("memory_format")
    if memory_format is None or memory_format is torch.preserve_format:
        strides = dense_strides(shape, types)
    else:
        strides = _format_strides(shape, memory_format)
    return TensorType(shape, output_dtype(rule, bound), strides, device)


def _requested_shape(bound: Mapping[str, Arg]) -> tuple[int, ...]:
    return tuple(bound.get("size") or ())


def _format_strides(shape: tuple[int, ...], memory_format: torch.memory_format) -> tuple[int, ...]:
    if memory_format is torch.contiguous_format:
        return contiguous_strides(shape)
    channels_last_shape = (shape[0], *shape[2:], shape[1])
    strides = contiguous_strides(channels_last_shape)
    return (strides[0], strides[-1], *strides[1:-1])


def output_dtype(rule: Pointwise, bound: Mapping[str, Arg]) -> torch.dtype:
    """The dtype that torch gives the output of a pointwise op."""
    output = rule.output
    if output == "bool":
        return torch.bool
    if not isinstance(output, str):
        return output(bound)
    if output == "first":
        first = bound[rule.tensors[0]]
        return first.type.dtype if isinstance(first, Value) else number_dtype(first)
    dtype = promoted_dtype(bound[name] for name in rule.tensors if name not in rule.conditions)
    if output == "float" and not dtype.is_floating_point and not dtype.is_complex:
        return torch.get_default_dtype()
    return dtype


def reduced_shape(shape: tuple[int, ...], dims: tuple[int, ...], keepdim: bool) -> tuple[int, ...]:
    """`shape` with `dims` (non-negative) set to 1, or dropped."""
    if keepdim:
        return tuple(1 if d in dims else size for d, size in enumerate(shape))
    return tuple(size for d, size in enumerate(shape) if d not in dims)


def reduction_type(rule: Reduction, bound: Mapping[str, Arg]) -> TensorType:
    """The type of the output of a reduction, from its bound schema arguments."""
    source: TensorType = bound["self"].type
    shape = reduced_shape(source.shape, rule.dims(bound, len(source.shape)), rule.keepdim(bound))
    return TensorType(shape, rule.output(bound, source.dtype), _row_major(shape), source.device)
