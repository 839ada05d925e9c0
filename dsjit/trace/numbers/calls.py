"""Traced numbers as arguments of torch functions: the recorded node takes the number's Value in place of a constant.

A Python number is no tensor of no dimension: it has another say in type promotion, and bf16 and fp16 kernels may read
it unrounded. So the Value is first converted to what the op's kernel would make of the number:

- arithmetic: to the dtype that the op computes in. ATen reads a number, and a one-element tensor, that is not the first
  operand in its compute type (`original_scalar_value` in aten/src/ATen/native/cpu/BinaryOpsKernel.cpp), and rounds
  it further where it needs to.
- tensors made of a number: to their own dtype.

Arguments that are numbers in every overload (`alpha`, an exponent) are handed on as numbers (`ops.python_numbers`).

`tests/trace/numbers/test_calls.py` holds every entry against eager, bit for bit, over dtypes. Numbers that reach other
functions, or by another argument, are pinned.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import torch

from dsjit.ir.graph import Arg, Node, Source, TensorType, Value
from dsjit.ops.binding import bind_arguments
from dsjit.ops.python_numbers import with_number
from dsjit.trace.looks.outcome import OutcomeKind
from dsjit.trace.looks.segments import Look
from dsjit.trace.numbers.numbers import Numbers
from dsjit.trace.numbers.tables import number_outcome, plain
from dsjit.trace.recording.memory import Memory
from dsjit.trace.recording.source import SourceFinder

__all__ = ["NodeRecorder", "call_with_numbers"]

aten = torch.ops.aten

_REDUCED: Final = (torch.bfloat16, torch.float16)
_FULL: Final = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class _Operand:
    """The number is an operand. `op`: the overload that takes a tensor there. compares: its result is bool.

    checked: ATen raises when the number does not fit the dtype.
    """

    op: Any
    argument: str
    compares: bool = False
    checked: bool = False
    dtypes: tuple[torch.dtype, ...] = (*_FULL, *_REDUCED)


@dataclass(frozen=True, slots=True)
class _Filling:
    """The tensor is filled with the number."""

    argument: str


_OPERANDS: Final[dict[Any, _Operand]] = {
    aten.add.Tensor: _Operand(aten.add.Tensor, "other"),
    aten.sub.Tensor: _Operand(aten.sub.Tensor, "other"),
    aten.mul.Tensor: _Operand(aten.mul.Tensor, "other"),
    aten.div.Tensor: _Operand(aten.div.Tensor, "other"),
    aten.rsub.Scalar: _Operand(aten.rsub.Tensor, "other"),
    aten.eq.Scalar: _Operand(aten.eq.Tensor, "other", compares=True),
    aten.ne.Scalar: _Operand(aten.ne.Tensor, "other", compares=True),
    aten.lt.Scalar: _Operand(aten.lt.Tensor, "other", compares=True),
    aten.le.Scalar: _Operand(aten.le.Tensor, "other", compares=True),
    aten.gt.Scalar: _Operand(aten.gt.Tensor, "other", compares=True),
    aten.ge.Scalar: _Operand(aten.ge.Tensor, "other", compares=True),
    aten.clamp_min.default: _Operand(aten.clamp_min.Tensor, "min", checked=True),
    aten.clamp_max.default: _Operand(aten.clamp_max.Tensor, "max", checked=True),
    aten.lerp.Scalar: _Operand(aten.lerp.Tensor, "weight", dtypes=_FULL),
}

_FILLINGS: Final[dict[Any, _Filling]] = {
    aten.full.default: _Filling("fill_value"),
    aten.full_like.default: _Filling("fill_value"),
    aten.new_full.default: _Filling("fill_value"),
}


_SCALARS: Final[dict[Any, str]] = {
    aten.add.Tensor: "alpha",
    aten.sub.Tensor: "alpha",
    aten.addcdiv.default: "value",
    aten.addcmul.default: "value",
    aten.pow.Tensor_Scalar: "exponent",
    aten.pow.Scalar: "self",
}
"""Arguments that no overload takes as a tensor, and on which neither shape nor dtype depend: the op is called as it is,
with the number of the moment."""


def _functions(*names: str) -> frozenset[Any]:
    """Everything in torch that goes by one of these names: functions, methods, in-place methods."""
    owners = (torch, torch.Tensor, torch.special)
    return frozenset(
        getattr(owner, name + suffix)
        for name in names
        for owner in owners
        for suffix in ("", "_")
        if hasattr(owner, name + suffix)
    )


_KEEPING: Final = _functions(
    *("add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide"),
    *("__rsub__", "__rdiv__", "__rtruediv__", "__eq__", "__ne__"),
    *("eq", "ne", "not_equal", "lt", "less", "le", "less_equal", "gt", "greater", "ge", "greater_equal"),
    *("clamp", "clip", "clamp_min", "clamp_max", "lerp", "where", "masked_fill", "fill"),
    *("addcdiv", "addcmul", "pow", "__pow__", "__rpow__"),
    *("full", "full_like", "new_full", "scalar_tensor"),
)
"""Functions that hand a number on to ATen as it is, whatever it is."""

_ASSIGNING: Final = _functions("__setitem__")

_WITHOUT_MEMORY: Final = _functions("add", "sub", "subtract", "rsub", "__rsub__", "masked_fill", "fill", "where")
"""Functions whose derivative does not depend on an operand that is a number."""

_MAKING: Final = _functions("tensor", "as_tensor", "new_tensor") | _ASSIGNING
"""Functions that make a tensor of the number before they call ATen."""


_BOUNDING: Final = _functions("clamp", "clip", "clamp_min", "clamp_max")


def _depends_on_nan(function: Any) -> bool:
    """Whether releases of torch disagree on what `function` does with a Python NaN."""
    return function in _BOUNDING


def _keeps_numbers(function: Any) -> bool:
    return function in _KEEPING


def _makes_constants(function: Any) -> bool:
    return function in _MAKING


def _replace_number(
    nodes: MutableSequence[Node],
    start: int,
    number: float,
    value: Value,
    fresh: Callable[[TensorType], Value],
) -> float | None:
    """Let the one node of `nodes[start:]` that has `number` among its arguments take `value` instead.

    value: float64 or int64, without dimensions. fresh: makes a new Value.
    Returns the magnitude up to which finite numbers are treated as eager treats them; above, eager raises. Returns
    None, having changed nothing, when there is not exactly one such argument, or when it is not known how to give
    eager's bits.
    """
    sought = number_outcome(number)
    found = [
        (position, name)
        for position in range(start, len(nodes))
        if isinstance(nodes[position].op, torch._ops.OpOverload)
        for name, arg in _given_arguments(nodes[position])
        for item in _numbers_in(arg, type(sought) is bytes)
        if number_outcome(item) == sought
    ]
    if len(found) != 1:
        return None
    position, name = found[0]
    node = nodes[position]
    replacement = _replacement(node, name, value, fresh)
    if replacement is None:
        return None
    nodes[position : position + 1] = replacement
    operand = _OPERANDS.get(node.op)
    if _SCALARS.get(node.op) == name or (operand is not None and not operand.checked):
        return math.inf
    return _largest(node.output.type.dtype)


def _largest(dtype: torch.dtype) -> float:
    """Numbers of larger magnitude do not fit the dtype; every traced int fits int64."""
    return torch.finfo(dtype).max if dtype.is_floating_point else math.inf


def _given_arguments(node: Node) -> Iterator[tuple[str, Arg]]:
    """Names and values of what is passed, not of what is left to a default."""
    names = [a.name for a in node.op._schema.arguments]  # type: ignore[attr-defined]
    return itertools.chain(zip(names, node.args, strict=False), node.kwargs.items())


def _numbers_in(arg: Arg, floats: bool) -> Iterator[float]:
    if isinstance(arg, float if floats else int) and not isinstance(arg, bool):
        yield arg
    elif isinstance(arg, tuple | list):
        for item in arg:
            yield from _numbers_in(item, floats)


def _replacement(node: Node, name: str, value: Value, fresh: Callable[[TensorType], Value]) -> list[Node] | None:
    if len(node.outputs) != 1 or node.mutates or node.output.type.device.type != "cpu":
        return None
    bound = bind_arguments(node.op, node.args, node.kwargs)
    if _SCALARS.get(node.op) == name:
        return [_called_with(node, name, value)]
    operand = _OPERANDS.get(node.op)
    if node.op is aten.clamp.default:
        operand = _clamp_operand(bound)
    if operand is not None and operand.argument == name:
        return _operand_replacement(node, operand, bound, value, fresh)
    dtype = node.output.type.dtype
    if not (dtype.is_floating_point or dtype is value.type.dtype):
        return None
    if node.op is aten.scalar_tensor.default:
        return [_converted(value, node.output, node.source)]
    own = fresh(TensorType((), dtype, (), node.output.type.device))
    cast = _converted(value, own, node.source)
    if node.op is aten.masked_fill.Scalar and name == "value":
        return [cast, _renewed(node, aten.masked_fill.Tensor, {**bound, "value": own})]
    if node.op is aten.fill.Scalar and name == "value":
        return [cast, _renewed(node, aten.fill.Tensor, {**bound, "value": own})]
    filling = _FILLINGS.get(node.op)
    if filling is not None and filling.argument == name:
        empty = fresh(node.output.type)
        made = replace(_with(node, name, 0.0 if value.type.dtype.is_floating_point else 0), outputs=(empty,))
        return [cast, made, Node(aten.fill.Tensor, (empty, own), {}, node.outputs, node.source)]
    return None


def _called_with(node: Node, name: str, value: Value) -> Node:
    """The call of `node` with the number `value` as its argument `name`."""
    if name in node.kwargs:
        kwargs = {other: arg for other, arg in node.kwargs.items() if other != name}
        return Node(with_number, (node.op, name, value, *node.args), kwargs, node.outputs, node.source)
    names = [a.name for a in node.op._schema.arguments]  # type: ignore[attr-defined]
    place = names.index(name)
    args = (*node.args[:place], *node.args[place + 1 :])
    return Node(with_number, (node.op, place, value, *args), node.kwargs, node.outputs, node.source)


def _clamp_operand(bound: Mapping[str, Arg]) -> _Operand | None:
    """One bound only: two may be of different dtypes."""
    if bound["max"] is None:
        return _Operand(aten.clamp_min.Tensor, "min", checked=True)
    return _Operand(aten.clamp_max.Tensor, "max", checked=True) if bound["min"] is None else None


def _operand_replacement(
    node: Node, operand: _Operand, bound: Mapping[str, Arg], value: Value, fresh: Callable[[TensorType], Value]
) -> list[Node] | None:
    tensors = [arg for arg in bound.values() if isinstance(arg, Value)]
    dtype = node.output.type.dtype
    if operand.compares:
        (tensor,) = tensors
        dtype = tensor.type.dtype if tensor.type.dtype.is_floating_point else torch.get_default_dtype()
    if all(t.type.dtype is value.type.dtype for t in tensors) and (operand.compares or dtype is value.type.dtype):
        return [_renewed(node, operand.op, {**bound, operand.argument: value})]
    whole = not value.type.dtype.is_floating_point
    if dtype not in operand.dtypes or (whole and not all(t.type.dtype.is_floating_point for t in tensors)):
        return None
    if dtype in _REDUCED and not any(t.type.dtype is dtype and t.type.shape for t in tensors):
        return None  # the Value would be promoted to, or promote, what a number is not
    compute = torch.float32 if dtype in _REDUCED else dtype
    arguments = {**bound, operand.argument: value}
    if compute is not value.type.dtype:
        converted = fresh(TensorType((), compute, (), value.type.device))
        arguments[operand.argument] = converted
        return [_converted(value, converted, node.source), _renewed(node, operand.op, arguments)]
    return [_renewed(node, operand.op, arguments)]


def _converted(value: Value, result: Value, source: Source) -> Node:
    """Converts as c10 converts a number: doubles reach bf16 and fp16 through fp32."""
    if result.type.dtype is value.type.dtype:
        return Node(aten.clone.default, (value,), {}, (result,), source)
    return Node(aten._to_copy.default, (value,), {"dtype": result.type.dtype}, (result,), source)


def _renewed(node: Node, op: Any, bound: Mapping[str, Arg]) -> Node:
    """`op` with those of the arguments that it takes; they have the names of those of `node.op`."""
    positional = tuple([bound[a.name] for a in op._schema.arguments if not a.kwarg_only])
    keywords = {
        a.name: bound[a.name]
        for a in op._schema.arguments
        if a.kwarg_only and a.name in bound and bound[a.name] != a.default_value
    }
    return Node(op, positional, keywords, node.outputs, node.source)


def _with(node: Node, name: str, number: float) -> Node:
    """`node` with another number as its argument `name`."""
    names = [a.name for a in node.op._schema.arguments]  # type: ignore[attr-defined]
    if name in node.kwargs:
        return node.with_args(node.args, {**node.kwargs, name: number})
    args = tuple([number if at == name else arg for at, arg in zip(names, node.args, strict=False)])
    return node.with_args(args, node.kwargs)


class NodeRecorder(Protocol):
    """What a call with numbers needs of the recorder. replacing: whether new constants are made of known numbers."""

    memory: Memory
    constants: dict[Value, torch.Tensor]
    looks: list[Look]
    problems: list[Any]
    sources: SourceFinder
    replacing: bool

    def alive(self) -> tuple[Value, ...]: ...


def call_with_numbers(
    recorder: NodeRecorder,
    numbers: Numbers,
    passed: list[float],
    function: Any,
    call: Callable[[], Any],
) -> Any:
    """The result of `call`, a call of `function` with the numbers `passed` among its arguments.

    The nodes that it records take the number's Value; where that is not known to be right, the numbers are pinned, and
    where autograd keeps them for a backward.
    """
    number, makes_constants = passed[0], _makes_constants(function)
    unknown = len(passed) > 1 or not (makes_constants or _keeps_numbers(function))
    if unknown or (_depends_on_nan(function) and number != number):
        for each in passed:
            numbers.pin(each)
        return call()
    memory, looks = recorder.memory, recorder.looks
    start, look_count, known = len(memory.nodes), len(looks), frozenset(recorder.constants)
    alive, source = recorder.alive(), recorder.sources.current()
    recorder.replacing = makes_constants
    try:
        with numbers.as_plain(passed):
            result = call()
    except Exception:
        numbers.pin(number)  # whether it raises may depend on it
        raise
    finally:
        recorder.replacing = False
    value = numbers.value(number)
    if recorder.problems or value is None or type(number) in (float, int):
        return result
    limit = None
    if len(looks) == look_count and makes_constants:
        limit = _replace_constant(recorder, start, known, value, source, function in _ASSIGNING)
    elif len(looks) == look_count:
        limit = _replace_number(memory.nodes, start, number, value, memory.fresh)
    if limit is not None and _is_kept_for_backward(function, result, memory.nodes[start:]):
        limit = None
    if limit is not None and not numbers.may_exceed(number, limit):
        return result
    if limit is not None and isinstance(number, float) and abs(plain(number)) <= limit:
        within = _check_limit(memory, start, value, limit, source)
        looks.insert(look_count, Look(start + 2, OutcomeKind.TRUTH, (within,), True, alive, source))
        return result
    if not numbers.settle(number):
        looks.insert(look_count, Look(start, OutcomeKind.NUMBER, (value,), number_outcome(number), alive, source))
    numbers.mark_pinned(number)
    return result


def _is_kept_for_backward(function: Any, result: Any, nodes: Sequence[Node]) -> bool:
    """Whether autograd keeps the number, as the plain one that it was called with, for a backward in the call."""
    results = result if isinstance(result, tuple | list) else (result,)
    if not any(isinstance(each, torch.Tensor) and each.requires_grad for each in results):
        return False
    return function not in _WITHOUT_MEMORY or any(node.op is with_number for node in nodes)


def _check_limit(memory: Memory, start: int, value: Value, limit: float, source: Source) -> Value:
    """Whether the number `value` lies within `limit`: eager raises when a number does not fit a dtype."""
    size = memory.fresh(value.type)
    within = memory.fresh(replace(value.type, dtype=torch.bool))
    memory.nodes[start:start] = [
        Node(aten.abs.default, (value,), {}, (size,), source),
        Node(aten.le.Scalar, (size, limit), {}, (within,), source),
    ]
    return within


def _replace_constant(
    recorder: NodeRecorder, start: int, known: frozenset[Value], value: Value, source: Source, directly: bool
) -> float | None:
    """Let the one new constant, which was made of a number, be computed from its `value`. Returns the magnitude up to
    which finite numbers are treated as eager treats them; None when nothing was done.

    directly: an int becomes a float of the constant's dtype at once, not by way of a double.
    """
    made = [constant for constant in recorder.constants if constant not in known]
    whole = not value.type.dtype.is_floating_point
    if len(made) != 1 or made[0].type.shape:
        return None
    (constant,) = made
    if not (constant.type.dtype.is_floating_point or constant.type.dtype is value.type.dtype):
        return None
    del recorder.constants[constant]
    steps = [_converted(value, constant, source)]
    if whole and constant.type.dtype.is_floating_point and not directly:
        double = recorder.memory.fresh(replace(value.type, dtype=torch.float64))
        steps = [_converted(value, double, source), _converted(double, constant, source)]
    recorder.memory.nodes[start:start] = steps
    return _largest(constant.type.dtype)
