"""The rewrite rules of `passes.simplify`, as data.

Each rule states what it matches and what that becomes, as expressions over the Values `x` (f32[2, 3]), `i` (i64[2, 3]),
`c` (bool[2, 3]) and `h` (f16[2, 3]): the tests execute both sides. A rule holds bit for bit, for every input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import copysign
from typing import Any, Final, TypeAlias

import torch

from dsjit.ir.dtypes import FLOATING, is_integral
from dsjit.ir.graph import Arg, Node, TensorType, Value
from dsjit.ops.views import view_strides

__all__ = ["RULES", "Match", "Rule"]

aten = torch.ops.aten

Match: TypeAlias = Callable[[Node, Mapping[Value, Node]], "Value | Node | None"]
"""From a node with one output, and the producers of the Values before it: a Value of equal content and type, or a node
with the same outputs that computes the same more cheaply, or None when the rule does not apply."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`before` becomes `after`; `match` decides for nodes whose op is one of `ops`."""

    name: str
    ops: tuple[Any, ...]
    before: str
    after: str
    match: Match


def _same(value: Arg, type_: TensorType) -> Value | None:
    """`value`, when it is a Value of exactly `type_`."""
    return value if type(value) is Value and (value.type is type_ or value.type == type_) else None


def _producer(value: Arg, producers: Mapping[Value, Node], ops: Any) -> Node | None:
    """The node that defines `value`, when its op is one of `ops`."""
    if type(value) is not Value:
        return None
    node = producers.get(value)
    return node if node is not None and node.op in ops else None


def _operand_when(is_neutral: Callable[[Arg, Value], bool]) -> Match:
    """Matches `op(x, number)` where the number is neutral: the result is x."""

    def match(node: Node, producers: Mapping[Value, Node]) -> Value | None:
        if node.kwargs or len(node.args) != 2:
            return None
        x, number = node.args
        # Complex products and quotients mix real and imaginary parts: infinities and NaNs spread.
        if type(x) is not Value or x.type.dtype.is_complex or not is_neutral(number, x):
            return None
        return _same(x, node.outputs[0].type)

    return match


def _is_one(number: Arg, x: Value) -> bool:
    return type(number) in (int, float, bool) and number == 1


def _is_zero_for_add(number: Arg, x: Value) -> bool:
    if type(number) not in (int, float, bool) or number != 0:
        return False
    # -0.0 + 0.0 is 0.0, so only -0.0 is neutral for floats.
    return is_integral(x.type.dtype) or (x.type.dtype in FLOATING and copysign(1.0, number) < 0)


def _is_zero_for_sub(number: Arg, x: Value) -> bool:
    return type(number) in (int, float, bool) and number == 0 and copysign(1.0, number) > 0


def _inverse_of_itself(node: Node, producers: Mapping[Value, Node]) -> Value | None:
    """`f(f(x))` is x."""
    inner = _producer(node.args[0], producers, (node.op,))
    return None if inner is None else _same(inner.args[0], node.outputs[0].type)


def _idempotent(node: Node, producers: Mapping[Value, Node]) -> Value | None:
    """`f(f(x))` is `f(x)`."""
    inner = _producer(node.args[0], producers, (node.op,))
    return None if inner is None else _same(node.args[0], node.outputs[0].type)


def _abs_of_neg(node: Node, producers: Mapping[Value, Node]) -> Node | None:
    inner = _producer(node.args[0], producers, (aten.neg.default,))
    return None if inner is None else node.with_args(inner.args, node.kwargs)


def _same_branches(node: Node, producers: Mapping[Value, Node]) -> Value | None:
    if len(node.args) != 3 or node.args[1] is not node.args[2]:
        return None
    return _same(node.args[1], node.outputs[0].type)


def _first_argument(node: Node, producers: Mapping[Value, Node]) -> Value | None:
    """The op gives its first argument back whenever that has the type of the result."""
    return _same(node.args[0], node.outputs[0].type) if len(node.outputs) == 1 else None


def _only_element(node: Node, producers: Mapping[Value, Node]) -> Value | None:
    tensors = node.args[0]
    return _same(tensors[0], node.outputs[0].type) if len(tensors) == 1 else None


def _without_empty(node: Node, producers: Mapping[Value, Node]) -> Node | None:
    """Operands without elements add nothing to a concatenation, unless they decide its dtype."""
    tensors, output = node.args[0], node.outputs[0]
    full = tuple([x for x in tensors if x.type.numel])
    if not full or len(full) == len(tensors) or any(x.type.dtype is not output.type.dtype for x in full):
        return None
    if len(full) > 1:
        return node.with_args((full, *node.args[1:]), node.kwargs)
    if not output.type.is_contiguous:
        return None
    layout = {"memory_format": torch.contiguous_format}
    return Node(aten.clone.default, full, layout, node.outputs, node.source)


_EXACT_IN: Final[dict[torch.dtype, frozenset[torch.dtype]]] = {
    torch.uint8: frozenset({torch.int16, torch.int32, torch.int64, *FLOATING}),
    torch.int8: frozenset({torch.int16, torch.int32, torch.int64, *FLOATING}),
    torch.int16: frozenset({torch.int32, torch.int64, torch.float32, torch.float64}),
    torch.int32: frozenset({torch.int64, torch.float64}),
    torch.bool: frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *FLOATING}),
    torch.float16: frozenset({torch.float32, torch.float64}),
    torch.bfloat16: frozenset({torch.float32, torch.float64}),
    torch.float32: frozenset({torch.float64}),
}
"""The dtypes that hold every number of a dtype."""


def _cast_of_cast(node: Node, producers: Mapping[Value, Node]) -> Node | None:
    """`cast(cast(x, wide), narrow)` is `cast(x, narrow)` when `wide` holds every x.

    Not when an integer is made of a wider float: what happens out of range depends on the width.
    """
    inner = _producer(node.args[0], producers, (aten._to_copy.default,))
    if inner is None or node.outputs[0].type.device != inner.args[0].type.device:
        return None
    if not _keeps_layout(node) or not _keeps_layout(inner):
        return None
    source, wide, target = inner.args[0].type.dtype, inner.outputs[0].type.dtype, node.outputs[0].type.dtype
    exact = _EXACT_IN.get(source, frozenset())
    if wide not in exact:
        return None
    if wide in FLOATING and target not in FLOATING and target is not source and target not in exact:
        return None
    return node.with_args((inner.args[0],), {"dtype": target})


def _keeps_layout(node: Node) -> bool:
    return node.kwargs.get("memory_format") in (None, torch.preserve_format)


def _copy_of_copy(node: Node, producers: Mapping[Value, Node]) -> Node | None:
    """A copy whose layout is stated can copy from the original."""
    inner = _producer(node.args[0], producers, (aten.clone.default,))
    if inner is None or node.kwargs.get("memory_format") is not torch.contiguous_format:
        return None
    return node.with_args(inner.args[:1], node.kwargs)


_RESHAPES: Final[frozenset[Any]] = frozenset(
    {
        aten._unsafe_view.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.view.default,
    }
)
"""Views that keep the elements in row-major order."""


def _reshape_of_reshape(node: Node, producers: Mapping[Value, Node]) -> Value | Node | None:
    """Two reshapes are one, when the memory underneath can be seen in the last shape at once."""
    inner = _producer(node.args[0], producers, _RESHAPES)
    if inner is None:
        return None
    x, type_ = inner.args[0], node.outputs[0].type
    same = _same(x, type_)
    if same is not None:
        return same
    if not (x.type.is_contiguous and type_.is_contiguous) and view_strides(x.type, type_.shape) != type_.strides:
        return None
    return Node(aten.view.default, (x, type_.shape), {}, node.outputs, node.source)


_PERMUTES: Final[frozenset[Any]] = frozenset({aten.permute.default, aten.t.default, aten.transpose.int})


def _order(node: Node) -> tuple[int, ...]:
    """Which dimension of the argument each dimension of the result is."""
    rank = len(node.outputs[0].type.shape)
    if node.op is aten.permute.default:
        return tuple([dim % rank for dim in node.args[1]])
    order = list(range(rank))
    if rank:
        first, second = (0, rank - 1) if node.op is aten.t.default else (node.args[1] % rank, node.args[2] % rank)
        order[first], order[second] = order[second], order[first]
    return tuple(order)


def _permute_of_permute(node: Node, producers: Mapping[Value, Node]) -> Value | Node | None:
    inner = _producer(node.args[0], producers, _PERMUTES)
    if inner is None:
        return None
    inner_order = _order(inner)
    order = tuple([inner_order[dim] for dim in _order(node)])
    if order == tuple(range(len(order))):
        return _same(inner.args[0], node.outputs[0].type)
    return Node(aten.permute.default, (inner.args[0], order), {}, node.outputs, node.source)


def _expand_of_expand(node: Node, producers: Mapping[Value, Node]) -> Node | None:
    inner = _producer(node.args[0], producers, (aten.expand.default,))
    if inner is None:
        return None
    return Node(aten.expand.default, (inner.args[0], node.outputs[0].type.shape), {}, node.outputs, node.source)


_PER_DIMENSION: Final = (3, 4, 5, 7)
"""Where a convolution has its stride, padding, dilation and output padding."""


def _spelled_out(node: Node, producers: Mapping[Value, Node]) -> Node | None:
    """One number that stands for every dimension is written for each, as later passes read them by dimension."""
    weight = node.args[1]
    assert type(weight) is Value
    dims, args = len(weight.type.shape) - 2, list(node.args)
    for place in _PER_DIMENSION:
        numbers = args[place]
        if isinstance(numbers, tuple | list) and len(numbers) == 1:
            args[place] = tuple(numbers) * dims
    return None if dims == 1 or args == list(node.args) else node.with_args(tuple(args), node.kwargs)


_SELF_INVERSE = (aten.neg.default, aten.bitwise_not.default, aten.logical_not.default)
_IDEMPOTENT = (
    aten.abs.default,
    aten.ceil.default,
    aten.floor.default,
    aten.relu.default,
    aten.sign.default,
    aten.trunc.default,
)
_IDENTITY_VIEWS = (
    *_RESHAPES,
    *_PERMUTES,
    aten.alias.default,
    aten.detach.default,
    aten.expand.default,
    aten.lift_fresh.default,
    aten.slice.Tensor,
)
"""Views whose result has the type of its argument only when it is its argument (not so `as_strided`, or `_conj`)."""

RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "multiply by one",
        (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar),
        "aten.mul.Tensor(x, 1)",
        "x",
        _operand_when(_is_one),
    ),
    Rule("raise to one", (aten.pow.Tensor_Scalar,), "aten.pow.Tensor_Scalar(x, 1)", "x", _operand_when(_is_one)),
    Rule("add zero", (aten.add.Tensor, aten.add.Scalar), "aten.add.Tensor(i, 0)", "i", _operand_when(_is_zero_for_add)),
    Rule(
        "subtract zero",
        (aten.sub.Tensor, aten.sub.Scalar),
        "aten.sub.Tensor(x, 0.0)",
        "x",
        _operand_when(_is_zero_for_sub),
    ),
    Rule("its own inverse", _SELF_INVERSE, "aten.neg.default(aten.neg.default(x))", "x", _inverse_of_itself),
    Rule(
        "absolute value of a negation",
        (aten.abs.default,),
        "aten.abs.default(aten.neg.default(x))",
        "aten.abs.default(x)",
        _abs_of_neg,
    ),
    Rule("idempotent", _IDEMPOTENT, "aten.relu.default(aten.relu.default(x))", "aten.relu.default(x)", _idempotent),
    Rule("equal branches", (aten.where.self,), "aten.where.self(c, x, x)", "x", _same_branches),
    Rule(
        "copy",
        (aten.clone.default, aten._to_copy.default),
        "aten._to_copy.default(x, dtype=torch.float32)",
        "x",
        _first_argument,
    ),
    Rule(
        "copy of a copy",
        (aten.clone.default,),
        "aten.clone.default(aten.clone.default(aten.t.default(x)), memory_format=torch.contiguous_format)",
        "aten.clone.default(aten.t.default(x), memory_format=torch.contiguous_format)",
        _copy_of_copy,
    ),
    Rule("concatenate one", (aten.cat.default,), "aten.cat.default([x])", "x", _only_element),
    Rule(
        "concatenate with nothing",
        (aten.cat.default,),
        "aten.cat.default([aten.slice.Tensor(x, 0, 0, 0), aten.t.default(aten.t.default(x)), x])",
        "aten.cat.default([aten.t.default(aten.t.default(x)), x])",
        _without_empty,
    ),
    Rule(
        "cast through a wider dtype",
        (aten._to_copy.default,),
        "aten._to_copy.default(aten._to_copy.default(h, dtype=torch.float64), dtype=torch.float32)",
        "aten._to_copy.default(h, dtype=torch.float32)",
        _cast_of_cast,
    ),
    Rule("view as it is", _IDENTITY_VIEWS, "aten.view.default(x, [2, -1])", "x", _first_argument),
    Rule(
        "reshape twice",
        tuple(_RESHAPES),
        "aten.unsqueeze.default(aten.view.default(x, [6]), 0)",
        "aten.view.default(x, [1, 6])",
        _reshape_of_reshape,
    ),
    Rule(
        "permute twice",
        tuple(_PERMUTES),
        "aten.transpose.int(aten.permute.default(aten.unsqueeze.default(x, 0), [2, 1, 0]), 0, 1)",
        "aten.permute.default(aten.unsqueeze.default(x, 0), [1, 2, 0])",
        _permute_of_permute,
    ),
    Rule(
        "expand twice",
        (aten.expand.default,),
        "aten.expand.default(aten.expand.default(x, [4, 2, 3]), [5, 4, 2, 3])",
        "aten.expand.default(x, [5, 4, 2, 3])",
        _expand_of_expand,
    ),
    Rule(
        "convolve with one number for all dimensions",
        (aten.convolution.default,),
        "aten.convolution.default(aten.view.default(x, [1, 2, 3, 1]), aten.view.default(x, [3, 2, 1, 1]), None, "
        "[1], [0], [1], False, [0], 1)",
        "aten.convolution.default(aten.view.default(x, [1, 2, 3, 1]), aten.view.default(x, [3, 2, 1, 1]), None, "
        "[1, 1], [0, 0], [1, 1], False, [0, 0], 1)",
        _spelled_out,
    ),
)
