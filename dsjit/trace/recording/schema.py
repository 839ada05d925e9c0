"""What an ATen overload's schema says about aliasing and mutation, and its functional twin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch

from dsjit.ir.graph import Arg, map_values, values_in
from dsjit.ops.binding import bind_arguments
from dsjit.ops.calls import ASK_FOR_GRAD_MODE, in_grad_mode
from dsjit.ops.inference import output_dtype
from dsjit.ops.row import Pointwise
from dsjit.ops.table import row_of
from dsjit.trace.recording.memory import CannotTrace

__all__ = [
    "LAYOUT_QUESTIONS",
    "UNDECLARED_WRITES",
    "OpTraits",
    "functional_dtype",
    "functional_variant",
    "honest_call",
    "traits",
    "updates_statistics",
]

aten = torch.ops.aten

LAYOUT_QUESTIONS: Final = frozenset({aten.is_same_size.default, aten._has_same_storage_numel.default})
"""Ops that tell Python of tensors what guards know of them, not what they hold."""

HONEST_TWINS: Final[dict[Any, Any]] = {
    aten.unsafe_split.Tensor: aten.split.Tensor,
    aten.unsafe_split_with_sizes.default: aten.split_with_sizes.default,
    aten._efficientzerotensor.default: aten.zeros.default,
}
"""Ops that keep from their schema that they return views, or a tensor without memory; and those that do the same
openly."""

_WINDOWS: Final[dict[Any, tuple[int, tuple[int, ...]]]] = {
    aten.convolution.default: (1, (3, 4, 5, 7)),
    aten.convolution_backward.default: (2, (4, 5, 6, 8)),
}
"""Where a convolution takes its weight, and where a number for each dimension of the window, or one for all of them
(as autograd keeps `padding="valid"`)."""

UNDECLARED_WRITES: dict[str, tuple[int, ...]] = {
    # These update their running statistics although the schema does not say so
    # (aten/src/ATen/native/Normalization.cpp); harmless when the flag that enables it is off.
    "aten::native_batch_norm": (3, 4),
    "aten::cudnn_batch_norm": (3, 4),
    "aten::miopen_batch_norm": (3, 4),
}


@dataclass(frozen=True, slots=True)
class OpTraits:
    """Facts about one overload.

    writes: positions of the positional arguments that it writes to.
    writes_kwargs: names of keyword-only arguments that it writes to (`out=`).
    aliases: some result is a view of an argument (and nothing is written).
    composite: it is defined by calling other ops, and has no kernel of its own.
    per_tensor: it does to each tensor of a list what another op does to one, and calls that.
    random: it draws from a random generator.
    dynamic: the shape of its result depends on the content of its arguments.
    metadata: it changes the sizes, strides or storage of an argument in place.
    foreign: it is not one of torch's own, and its kernel may be Python code of the user's.
    tells_sizes: beside tensors, it returns numbers that the sizes of its arguments decide (attention on a GPU does).
    """

    writes: tuple[int, ...]
    writes_kwargs: tuple[str, ...]
    aliases: bool
    composite: bool
    per_tensor: bool
    random: bool
    dynamic: bool
    metadata: bool
    foreign: bool
    tells_sizes: bool


@cache
def traits(op: Any) -> OpTraits:
    """The traits of an `OpOverload`."""
    schema = op._schema
    writes: list[int] = []
    writes_kwargs: list[str] = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            if argument.kwarg_only:
                writes_kwargs.append(argument.name)
            else:
                writes.append(position)
    aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    name = op.name()
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    composite = has(name, "CompositeImplicitAutograd") and not has(name, "CPU")
    return OpTraits(
        writes=tuple(writes),
        writes_kwargs=tuple(writes_kwargs),
        aliases=aliases,
        composite=composite,
        per_tensor=schema.name.startswith("aten::_foreach") and has(name, "CompositeExplicitAutograd"),
        random=torch.Tag.nondeterministic_seeded in op.tags,
        dynamic=torch.Tag.dynamic_output_shape in op.tags,
        metadata=torch.Tag.inplace_view in op.tags or schema.name in ("aten::resize_", "aten::set_"),
        foreign=op.namespace not in ("aten", "prims"),
        tells_sizes=len(schema.returns) > 1 and "SymInt" in str(schema).rpartition("->")[2],
    )


def honest_call(func: Any, args: tuple[Arg, ...]) -> tuple[Any, tuple[Arg, ...]]:
    """What stands in the Graph for a call: an op that computes the same whatever the mode, whose schema is
    true, with its arguments written out."""
    if func in ASK_FOR_GRAD_MODE and torch.is_grad_enabled():
        return in_grad_mode, (func, *args)
    if func in _WINDOWS:
        return func, _with_whole_windows(args, *_WINDOWS[func])
    return HONEST_TWINS.get(func, func), args


def _with_whole_windows(args: tuple[Arg, ...], weight: int, places: tuple[int, ...]) -> tuple[Arg, ...]:
    rank = len(args[weight].type.shape) - 2
    return tuple([arg * rank if place in places and len(arg) == 1 else arg for place, arg in enumerate(args)])


@cache
def functional_variant(op: Any) -> Any | None:
    """The overload that computes what `op` (in-place or `out=`) writes, and writes nothing; None without one.

    The functional overload takes the same arguments, less the `out` ones, and returns as many tensors as `op` writes.
    """
    schema = op._schema
    written = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    wanted = [(a.name, str(a.type)) for a in schema.arguments if not (a.kwarg_only and a in written)]
    base = schema.name.split("::")[1]
    if base.endswith("_") and not base.endswith("__"):
        base = base[:-1]
    elif base.startswith("__i") and base.endswith("__"):
        base = "__" + base[3:]
    packet = getattr(getattr(torch.ops, schema.name.split("::")[0]), base, None)
    if packet is None:
        return None
    for name in packet.overloads():
        candidate = getattr(packet, name)
        other = candidate._schema
        if other.is_mutable or len(other.returns) != max(len(written), 1):
            continue
        if [(a.name, str(a.type)) for a in other.arguments] == wanted:
            return candidate
    return None


def updates_statistics(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a batch norm call updates running statistics: the argument after the last tensor is `training`."""
    names = [a.name for a in func._schema.arguments]
    bound = dict(zip(names, args, strict=False)) | kwargs
    return bool(bound.get("training", True)) and bound.get("running_mean") is not None


def functional_dtype(op: Any, args: tuple[Arg, ...], kwargs: dict[str, Arg], own: torch.dtype) -> torch.dtype:
    """The result dtype of the functional form of an op that writes to a tensor of dtype `own`: that one, unless another
    operand is wider, or the op has a dtype of its own (`gt_`, or `cumsum_` of int32)."""
    # Lists of tensors that may be None are indices.
    deciding = [arg for arg, kind in zip(args, _kinds(op), strict=False) if kind != "List[Optional[Tensor]]"]
    others = [value.type.dtype for value in values_in(tuple(deciding))]
    if all(dtype in (own, torch.bool) for dtype in others):  # a mask never widens
        row = row_of(op)
        if row is not None and isinstance(row.rule, Pointwise):
            return output_dtype(row.rule, bind_arguments(op, args, kwargs))
        accumulates = any(argument.name == "dtype" for argument in op._schema.arguments)
        if own.is_floating_point or not accumulates:
            return own
    meta_args = map_values(args, lambda v: torch.empty(v.type.shape, dtype=v.type.dtype, device="meta"))
    try:
        result = op(*meta_args, **kwargs)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise CannotTrace(f"{op} has a functional form of unknown dtype") from error
    return result.dtype if isinstance(result, torch.Tensor) else own


@cache
def _kinds(op: Any) -> tuple[str, ...]:
    """The types of the arguments, as the schema has them."""
    return tuple([str(argument.type) for argument in op._schema.arguments])
